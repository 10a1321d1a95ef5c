"""The containers in which a data set stores its rows, and stand-ins that record which rows are read."""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Iterator, Sized
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset

from dpmodel.preflight.readings import holders, parts_of

#: A stored row: the container, or the memory it lies in, and its place.
Row = tuple[Hashable, int]

#: Fewest rows of a container that may hold the examples.
SMALLEST = 32

#: Largest number of rows of one reading that are recorded one by one; a larger reading counts as one of all rows.
_MOST_ROWS = 4_096


@dataclass
class Watch:
    """The rows that are read during one reading of an example, and the replacement that is shown.

    Args:
        rows: The rows that were read, each with its store and its number there.
        whole: Stores that were not read row by row, by identity.
        shown: A row, and the number of the row of the same store that replaces it.
        altered: A store, and the changed copy of its container that replaces it.
    """

    rows: dict[Row, tuple[Store, int]] = field(default_factory=dict)
    whole: dict[int, Store] = field(default_factory=dict)
    shown: tuple[Row, int] | None = None
    altered: tuple[Store, Any] | None = None

    def clear(self) -> None:
        """Forget what was read."""
        self.rows, self.whole = {}, {}


@dataclass
class Store:
    """A container with rows of the data set.

    Args:
        name: The attribute that holds it.
        value: The container.
        limit: Largest number of rows of a container for which reads of single rows count: a longer one may be a public
            table.
        watch: Records what is read.
    """

    name: str
    value: Any
    limit: int
    watch: Watch

    def __post_init__(self) -> None:
        self.size = len(self.value)
        self._place, self._step = _memory(self.value)

    @property
    def now(self) -> Any:
        """The container or its replacement."""
        altered = self.watch.altered
        return altered[1] if altered is not None and altered[0] is self else self.value

    def key(self, row: int) -> Row:
        """The key of a row; two containers that share the memory of a row have the same."""
        kind, address = self._place
        return (kind, address + row * self._step) if self._step else (self._place, row)

    def read(self, rows: Any, *, by_slice: bool = False) -> None:
        """Record a reading of these rows: a number, or an array of numbers."""
        numbers = np.ravel(rows)
        if by_slice or self.size <= self.limit:
            if len(numbers) > _MOST_ROWS:
                self.whole()
            else:
                self.watch.rows.update((self.key(int(number)), (self, int(number))) for number in numbers)

    def whole(self) -> Any:
        """Record a reading of the whole container, and return it or its replacement."""
        if self.size <= self.limit:
            self.watch.whole[id(self.value)] = self
        return self.now

    def in_place_of(self, rows: Any) -> Any:
        """Row numbers, the replaced row exchanged for its replacement."""
        if self.watch.shown is None:
            return rows
        hidden, shown = self.watch.shown
        changed = [shown if self.key(int(number)) == hidden else int(number) for number in np.ravel(rows)]
        return np.array(changed, dtype=np.int64).reshape(np.shape(rows)) if np.ndim(rows) else changed[0]


def _memory(value: Any) -> tuple[tuple[Hashable, int], int]:
    """The place of row 0 and the distance to the next row; distance 0 for rows without an address."""
    if isinstance(value, torch.Tensor):
        return ("memory", value.data_ptr()), value.stride(0) * value.element_size()
    if isinstance(value, np.ndarray):
        return ("memory", value.__array_interface__["data"][0]), value.strides[0]
    return ("object", id(value)), 0


def first_rows(index: Any, size: int) -> tuple[Any, tuple[Any, ...]] | None:
    """The row numbers that ``index`` selects, and the rest of the index; None if it does not begin with rows.

    Example:
        >>> first_rows((slice(1, 3), 0), 10)
        (array([1, 2]), (0,))
        >>> first_rows(-1, 10)
        (9, ())
    """
    first, rest = (index[0], index[1:]) if isinstance(index, tuple) and index else (index, ())
    if isinstance(first, torch.Tensor):
        first = first.detach().cpu().numpy()
    if isinstance(first, slice):
        return np.arange(*first.indices(size)), rest
    if first is None or first is Ellipsis or isinstance(first, (bool, tuple)):
        return None
    rows = np.asarray(first)
    rows = np.flatnonzero(rows) if rows.dtype == bool else rows
    if rows.size and not (-size <= rows.min() and rows.max() < size):
        return None
    return (rows % size if rows.ndim else int(rows) % size), rest


def _select(store: Store, index: Any, take: Callable[[Any], Any]) -> Any:
    """The result of ``take(index)``, recorded, with the replaced row exchanged."""
    selected = first_rows(index, store.size)
    if selected is None:
        store.whole()
        return take(index)
    rows, rest = selected
    first = index[0] if isinstance(index, tuple) else index
    store.read(rows, by_slice=isinstance(first, slice))
    if store.watch.shown is None:
        return take(index)
    rows = store.in_place_of(rows)
    return take((rows, *rest) if rest else rows)


class _RecordedTensor(torch.Tensor):
    """A tensor that records which of its rows are read. Reading it gives plain copies."""

    store: Store

    def __getitem__(self, index: Any) -> torch.Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            value = self.store.now
            taken: torch.Tensor = _select(self.store, index, lambda at: value[_map_index(_as_tensor, at)])
            return taken.clone()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name in _METADATA and len(args) == 1:
            answer = func(args[0].store.now)
            if not isinstance(answer, torch.Tensor):
                return answer
        if name in _BY_ROW and isinstance(args[0], cls) and (args[1:2] or (kwargs.get("dim"),))[0] == 0:
            store = args[0].store
            rows = func(torch.arange(store.size, device="cpu"), *args[1:], **kwargs).numpy()
            return args[0][int(rows) if not rows.ndim else torch.from_numpy(rows)]
        return func(*_whole(tuple(args)), **{key: _whole(value) for key, value in kwargs.items()})


def _whole(value: Any) -> Any:
    """The plain value of a recorded tensor, or of those in a list or tuple."""
    if isinstance(value, _RecordedTensor) and hasattr(value, "store"):
        return value.store.whole()
    if type(value) in (list, tuple):
        return type(value)(_whole(part) for part in value)
    return value


#: Functions of a tensor that select along the dimension in their first argument.
_BY_ROW = ("select", "index_select", "narrow")

#: Functions of a tensor that do not read its entries, unless they return a tensor; ``__get__`` reads attributes.
_METADATA = ("__get__", "__len__", "size", "dim", "numel", "stride", "is_floating_point", "element_size")


class _RecordedArray(np.ndarray):
    """``_RecordedTensor`` for arrays."""

    store: Store | None

    def __array_finalize__(self, source: Any) -> None:
        self.store = None

    def __getitem__(self, index: Any) -> Any:
        if self.store is None:
            return super().__getitem__(index)
        value = self.store.now
        taken = _select(self.store, index, lambda at: value[_map_index(np.asarray, at)])
        return taken.copy() if isinstance(taken, np.ndarray) else taken

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        return getattr(ufunc, method)(*map(_unwatched, inputs), **options)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return func(*(_unwatched(value) for value in args), **kwargs)


def _as_tensor(index: Any) -> torch.Tensor:
    return index if isinstance(index, torch.Tensor) else torch.from_numpy(index)


def _map_index(convert: Callable[[Any], Any], index: Any) -> Any:
    """``index`` with its arrays and tensors converted."""
    if isinstance(index, tuple):
        return tuple(_map_index(convert, part) for part in index)
    return convert(index) if isinstance(index, (np.ndarray, torch.Tensor)) else index


def _unwatched(value: Any) -> Any:
    if not isinstance(value, _RecordedArray):
        return value
    return value.view(np.ndarray) if value.store is None else value.store.whole()


class _RecordedList(list):
    """``_RecordedTensor`` for lists."""

    store: Store

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            rows = list(range(self.store.size)[index])
            self.store.read(rows, by_slice=True)
            return [self.store.now[row] for row in self.store.in_place_of(np.array(rows, dtype=np.int64)).tolist()]
        row = operator.index(index) % self.store.size if -self.store.size <= index < self.store.size else index
        self.store.read(row)
        return self.store.now[self.store.in_place_of(row)]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.store.whole())


def recorded(store: Store) -> Any:
    """A container like ``store.value`` that records what is read."""
    value = store.value
    if isinstance(value, torch.Tensor):
        with torch._C.DisableTorchFunctionSubclass():
            tensor = value.detach().as_subclass(_RecordedTensor)
        tensor.store = store
        return tensor
    if isinstance(value, np.ndarray):
        array = value.view(_RecordedArray)
        array.store = store
        return array
    entries = _RecordedList(value)
    entries.store = store
    return entries


def _recording_class(kind: type, store: Store) -> type:
    """A subclass of a data set's class whose ``__getitem__`` records rows and exchanges the replaced one."""

    def read(self: Any, index: Any) -> Any:
        if isinstance(index, (int, np.integer)) or (isinstance(index, torch.Tensor) and index.dim() == 0):
            row = int(index) % store.size if -store.size <= int(index) < store.size else int(index)
            store.read(row)
            index = index if store.watch.shown is None else store.in_place_of(row)
        return own(self, index)

    own = cast(Any, kind).__getitem__
    return type(kind.__name__, (kind,), {"__getitem__": read, "__module__": kind.__module__})


@contextmanager
def watched(dataset: Any) -> Iterator[Watch]:
    """Record the rows that ``dataset`` reads from its containers inside the block.

    Containers that cannot be replaced meanwhile are left out.
    """
    recorder = _Recorder(dataset)
    try:
        for holder in holders(dataset):
            recorder.record(holder)
        yield recorder.watch
    finally:
        recorder.undo()


class _Recorder:
    """Replaces the containers of a data set with containers that record."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.watch = Watch()
        self._kinds: list[tuple[Any, type]] = []
        self._replaced: list[tuple[dict[str, Any], str, Any, Any]] = []

    def undo(self) -> None:
        for inner, kind in self._kinds:
            inner.__class__ = kind
        for attributes, name, value, new in self._replaced:
            if attributes.get(name) is new:
                attributes[name] = value

    def record(self, holder: Any) -> None:
        size = len(holder) if hasattr(type(holder), "__len__") else len(self.dataset)
        parted = isinstance(holder, (ConcatDataset, Subset))
        for name, value in list(vars(holder).items()):
            new = self._recording(name, value, size, parted)
            if new is not value:
                vars(holder)[name] = new
                self._replaced.append((vars(holder), name, value, new))

    def _recording(self, name: str, value: Any, size: int, parted: bool) -> Any:
        if parts := parts_of(value):
            new = [self._recording(name, part, size, parted) for part in parts]
            if all(one is other for one, other in zip(new, parts, strict=True)):
                return value
            return dict(zip(value, new, strict=True)) if isinstance(value, dict) else type(value)(new)
        fewest, most = max(SMALLEST, size // 2 + 1), size + size // 8 + 8
        if isinstance(value, Dataset):
            if isinstance(value, Sized) and (parted or len(value) >= fewest):
                self._record_kind(name, value)
            return value
        if _may_hold_rows(value) and fewest <= len(value):
            return recorded(Store(name, value, most, self.watch))
        return value

    def _record_kind(self, name: str, value: Any) -> None:
        kind = type(value)
        if any(value is other for other, _ in self._kinds):
            return
        with suppress(TypeError):  # objects of some classes cannot change their class
            value.__class__ = _recording_class(kind, Store(name, value, len(value), self.watch))
            self._kinds.append((value, kind))


def _may_hold_rows(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        # Rows that share their memory, such as a constant label, are not separate rows.
        return value.layout == torch.strided and value.dim() > 0 and value.stride(0) != 0 and not _are_offsets(value)
    if isinstance(value, np.ndarray):
        return value.ndim > 0 and value.strides[0] != 0 and not _are_offsets(value)
    return type(value) is list


def _are_offsets(value: Any) -> bool:
    """Whether these are increasing integers, such as the start of each example in a different array."""
    if value.ndim != 1 or "int" not in str(value.dtype):
        return False
    return bool((value[1:] >= value[:-1]).all())
