"""Where the rows of a data set lie, and whether two data sets hold some of the same rows."""

from __future__ import annotations

import types
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import ChainDataset, ConcatDataset, Dataset, Subset

from dpmodel.data.reachable import MAX_OBJECTS
from dpmodel.data.stream import read_from

#: Row numbers; None for all rows.
Rows = NDArray[np.int64] | None

#: Beginnings and ends of intervals, int64 (n, 2).
Intervals = NDArray[np.int64]

#: Largest container whose elements are visited; a longer one holds data.
SHORT = 31

#: How deep objects are followed.
_DEPTH = 8

#: Examples of a list that are searched for tensors.
_MOST_EXAMPLES = 100_000

#: An end behind every row.
_END = 2**62

#: What refers to much else than data.
NO_HOLDERS = (
    type,
    types.ModuleType,
    types.FunctionType,
    types.MethodType,
    types.BuiltinFunctionType,
    nn.Module,
)

#: Values of which equal ones are often the same object.
_PLAIN = (int, float, complex, bool, str, bytes, type(None), type)


@dataclass
class HeldRows:
    """The rows of a data set, as intervals in spaces: bytes of memory, numbers of rows of a data set, objects.

    Subsets, concatenations and wrappers are followed, and so are the attributes of data sets. An array or a list as
    long as its data set holds a row in each entry. If there is none, the rows are somewhere in the longer arrays and
    inner data sets. A vector holds targets, which show no row, unless it is the first column. No code of the data set
    runs except ``__len__``.

    Attributes:
        data: The data set; while it exists, no other object has the identity of one of its parts.
        certain: The rows that are read, by space.
        possible: Rows of which some are read if nothing that is certain holds the examples.
        known: Whether something that is certain holds the examples.

    Example:
        >>> x = torch.zeros(10, 3)
        >>> first, last = (HeldRows.of(torch.utils.data.TensorDataset(part)) for part in (x[:6], x[6:]))
        >>> first.meets(last), first.meets(HeldRows.of((x[5:],)))
        (False, True)
    """

    data: Any
    certain: dict[Hashable, list[Intervals]] = field(default_factory=dict)
    possible: list[tuple[Hashable, Intervals]] = field(default_factory=list)
    known: bool = False

    @classmethod
    def of(cls, data: Any) -> HeldRows:
        """The rows of a data set, or of tensors or batches in a list or tuple."""
        found = cls(data)
        _Search(found).data(data, None, True, 0)
        return found

    def add(self, space: Hashable, intervals: Intervals, certain: bool) -> None:
        """Note rows that are read, or of which some may be."""
        if not len(intervals):
            return
        if certain:
            self.certain.setdefault(space, []).append(intervals)
        else:
            self.possible.append((space, intervals))

    def meets(self, other: HeldRows) -> bool:
        """Whether some row is certainly in both."""
        ours, theirs = self._merged(), other._merged()
        return (
            any(space in theirs and _meet(intervals, theirs[space]) for space, intervals in ours.items())
            or self._must_meet(theirs)
            or other._must_meet(ours)
        )

    def _merged(self) -> dict[Hashable, Intervals]:
        return {space: _merge(intervals) for space, intervals in self.certain.items()}

    def _must_meet(self, certain: Mapping[Hashable, Intervals]) -> bool:
        """Whether the others read all rows of which some must be read here."""
        return not self.known and any(
            space in certain and _inside(intervals, certain[space]) for space, intervals in self.possible
        )


class _Search:
    """Follows a data set to the rows that it holds."""

    def __init__(self, found: HeldRows) -> None:
        self.found = found
        self._left = MAX_OBJECTS
        self._holders: set[int] = set()
        self._first = True  # whether the next column is the first of its data set

    def data(self, value: Any, rows: Rows, certain: bool, depth: int) -> None:
        """Note ``rows`` of a data set; of a list, these are its elements."""
        self._left -= 1
        if depth > _DEPTH or self._left < 0:
            return
        value = read_from(value)
        size = _length(value)
        if not isinstance(value, Subset):  # torch makes new ones for the same rows
            self.found.add(("rows", id(value)), _of_numbers(rows, size if not certain else None), certain)
        self._first = True
        if isinstance(value, (Tensor, np.ndarray)):
            self._column(value, size, rows, certain)
        elif isinstance(value, list) or (isinstance(value, tuple) and rows is not None):
            self._examples(value, rows, certain)
        elif isinstance(value, (tuple, dict)):  # inputs and targets
            self._held(value, _length(next(iter(_arrays(value)), None)), None, certain, depth + 1)
        elif isinstance(value, (ConcatDataset, ChainDataset)):
            self._concatenated(value, rows, certain, depth)
        elif (chosen := _chosen(value, size)) is not None:
            rows = chosen if rows is None else chosen[rows % len(chosen)]
            self.data(vars(value)["dataset"], rows, certain, depth + 1)
        else:
            self._attributes(value, size, rows, certain, depth)

    def _concatenated(self, value: Any, rows: Rows, certain: bool, depth: int) -> None:
        begin = 0
        for part in value.datasets:
            size = _length(part)
            inside = rows
            if rows is not None and size is not None:
                inside = rows[(rows >= begin) & (rows < begin + size)] - begin
                begin += size
            if inside is None or len(inside):
                self.data(part, inside, certain, depth + 1)

    def _attributes(self, value: Any, size: int | None, rows: Rows, certain: bool, depth: int) -> None:
        if id(value) in self._holders and not isinstance(value, Dataset):
            return
        self._holders.add(id(value))
        for held in _attributes(value):
            self._held(held, size, rows, certain, depth + 1)

    def _held(self, value: Any, size: int | None, rows: Rows, certain: bool, depth: int) -> None:
        """What a data set of a size holds: a column, a list of examples, an inner data set, or an object with these."""
        if depth > _DEPTH or self._left < 0:
            return
        if isinstance(value, (Tensor, np.ndarray)):
            self._column(value, size, rows, certain)
        elif isinstance(value, (list, tuple)) and len(value) == size:
            self._examples(value, rows, certain)
        elif isinstance(value, (list, tuple, dict)):
            for part in _elements(value) if len(value) <= SHORT else ():
                self._held(part, size, rows, certain, depth + 1)
        elif isinstance(value, Dataset):
            # A wrapper of the same length shows the example of each row in its own way.
            same = size is not None and _length(value) == size
            self.data(value, rows if same else None, certain and same, depth)
        elif not isinstance(value, NO_HOLDERS):
            self._left -= 1
            self._attributes(value, size, rows, certain, depth)

    def _column(self, array: Any, size: int | None, rows: Rows, certain: bool) -> None:
        space, count = _space(array), _length(array)
        if space is None or count is None:
            return
        if array.ndim == 1 and not self._first:
            return
        self._first = False
        if count == size:
            # A vector of integers may be the numbers of the rows.
            self.found.known |= certain and (array.ndim > 1 or "float" in str(array.dtype))
            self.found.add(space, _places(array, rows), certain)
        elif size is None or count > size:
            self.found.add(space, _places(array, None), False)

    def _examples(self, values: Any, rows: Rows, certain: bool) -> None:
        chosen = values if rows is None else [values[row] for row in rows.tolist() if row < len(values)]
        objects = [id(value) for value in chosen if not isinstance(value, _PLAIN)]
        self.found.known |= certain and bool(objects)
        if len(set(objects)) == len(objects):  # otherwise they are classes, or other values that rows share
            self.found.add("objects", _of_numbers(np.array(objects, dtype=np.int64), None), certain)
        for value in chosen[:_MOST_EXAMPLES]:
            # The largest is the input: targets such as rows of an identity matrix may be shared.
            arrays = [(array, space) for array in _arrays(value) if (space := _space(array)) is not None]
            if arrays:
                array, space = max(arrays, key=lambda each: int(each[0].nbytes))
                self.found.add(space, _places(array, None), certain)


def _length(value: Any) -> int | None:
    with suppress(Exception):  # a stream has none
        return len(value)
    return None


def _chosen(value: Any, size: int | None) -> Rows:
    """The rows of its ``dataset`` that a ``Subset``, or an object like one, chooses; None if it is none."""
    attributes = getattr(value, "__dict__", {})
    if "dataset" not in attributes or "indices" not in attributes:
        return None
    with suppress(Exception):  # other things of this name
        rows = np.asarray(attributes["indices"])
        inner = _length(attributes["dataset"])
        if rows.ndim == 1 and (rows.dtype.kind in "iu" or not len(rows)) and len(rows) == size:
            rows = rows.astype(np.int64)
            return rows if inner is None else rows % inner  # negative rows count from the end
    return None


def _attributes(value: Any) -> Iterator[Any]:
    with suppress(Exception):
        yield from list(vars(value).values())
    for kind in type(value).__mro__:
        for slot in vars(kind).values():
            if isinstance(slot, types.MemberDescriptorType):
                with suppress(AttributeError):  # nothing in it
                    yield slot.__get__(value)


def _elements(values: Any) -> Iterable[Any]:
    return list(values.values()) if isinstance(values, dict) else values


def _arrays(example: Any, depth: int = 0) -> list[Any]:
    """The tensors and arrays in an example."""
    if isinstance(example, (Tensor, np.ndarray)):
        return [example] if example.ndim else []
    if isinstance(example, (list, tuple, dict)) and len(example) <= SHORT and depth < _DEPTH:
        return [array for part in _elements(example) for array in _arrays(part, depth + 1)]
    return []


def _space(array: Any) -> Hashable | None:
    """The memory that an array lies in; None if it has no rows with an address."""
    if isinstance(array, np.ndarray):
        return "cpu" if array.ndim and array.size else None
    with suppress(Exception):  # subclasses without memory
        if array.layout is torch.strided and not array.is_nested and array.dim() and array.numel():
            return None if array.device.type == "meta" else str(array.device)
    return None


def _places(array: Any, rows: Rows) -> Intervals:
    """The bytes of some rows of an array; of rows that interleave, only their first entries."""
    if isinstance(array, np.ndarray):
        address, item, strides = array.__array_interface__["data"][0], array.itemsize, array.strides
    else:
        address, item = array.data_ptr(), array.element_size()
        strides = tuple(stride * item for stride in array.stride())
    step, reaches = strides[0], [(size - 1) * stride for size, stride in zip(array.shape[1:], strides[1:], strict=True)]
    begin, extent = sum(min(reach, 0) for reach in reaches), sum(map(abs, reaches)) + item
    if not step and len(reaches) == 0 and len(array) > 1:
        return np.empty((0, 2), dtype=np.int64)  # one target for all rows
    if step and extent > abs(step):
        begin, extent = 0, item
    if rows is None and extent == step:
        return np.array([[address + begin, address + begin + len(array) * step]], dtype=np.int64)
    numbers = np.arange(len(array), dtype=np.int64) if rows is None else rows[rows < len(array)]
    starts = address + begin + numbers * step
    return np.stack([starts, starts + extent], axis=1)


def _of_numbers(numbers: Rows, size: int | None) -> Intervals:
    """Intervals of length 1; one interval for all numbers."""
    if numbers is None:
        return np.array([[0, _END if size is None else size]], dtype=np.int64)
    return np.stack([numbers, numbers + 1], axis=1)


def _merge(pieces: list[Intervals]) -> Intervals:
    """The union of intervals as disjoint intervals, in ascending order."""
    joined = np.concatenate(pieces)
    joined = joined[np.argsort(joined[:, 0], kind="stable")]
    ends = np.maximum.accumulate(joined[:, 1])
    first = np.flatnonzero(np.append(True, joined[1:, 0] > ends[:-1]))
    return np.stack([joined[first, 0], ends[np.append(first[1:] - 1, len(ends) - 1)]], axis=1)


def _candidates(some: Intervals, merged: Intervals) -> tuple[Intervals, NDArray[np.bool_]]:
    """For each interval the first of the merged ones that does not end before it, and whether there is one."""
    at = np.searchsorted(merged[:, 1], some[:, 0], side="right")
    return merged[np.minimum(at, len(merged) - 1)], at < len(merged)


def _meet(some: Intervals, merged: Intervals) -> bool:
    found, exist = _candidates(some, merged)
    return bool((exist & (found[:, 0] < some[:, 1])).any())


def _inside(some: Intervals, merged: Intervals) -> bool:
    found, exist = _candidates(some, merged)
    return bool((exist & (found[:, 0] <= some[:, 0]) & (found[:, 1] >= some[:, 1])).all())
