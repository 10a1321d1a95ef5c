"""What the code of a network and a loss can reach and change, put back after every pass over private data."""

from __future__ import annotations

import functools
import sys
import sysconfig
import threading
import types
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from operator import is_
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

#: Objects that are followed at most; more could not be compared after every pass.
MOST_OBJECTS = 50_000

#: Bytes of tensors and arrays that are copied at most, so that they can be put back.
MOST_BYTES = 64 * 2**20

#: Where installed packages lie. Their code is trusted to keep the state of a network in the network's objects.
_INSTALLED = tuple({sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")})

#: Names of folders of packages elsewhere: those of the system under a virtual environment, or of ``pip --target``.
_PACKAGES = frozenset({"site-packages", "dist-packages"})
_OWN = ("mechanisms", "dpmodel", "monitors")

_MISSING = object()


class Holder(ABC):
    """One object that holds others, and what it held when the state was recorded."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def is_current(self) -> bool:
        """Whether it holds what it held."""

    @abstractmethod
    def put_back(self) -> list[str]:
        """Let it hold what it held; the names of what was different."""


class _Mapping(Holder):
    """A dictionary, or the attributes of an object or a class."""

    __slots__ = ("_delete", "_keys", "_mapping", "_set", "_values")

    def __init__(
        self,
        name: str,
        mapping: Any,
        set_item: Callable[[Any, Any], object] | None = None,
        delete: Callable[[Any], object] | None = None,
    ) -> None:
        super().__init__(name)
        self._mapping, self._keys, self._values = mapping, list(mapping), list(mapping.values())
        self._set, self._delete = set_item or mapping.__setitem__, delete or mapping.__delitem__

    def is_current(self) -> bool:
        now = self._mapping
        return len(now) == len(self._keys) and all(map(is_, now.values(), self._values)) and [*now] == self._keys

    def put_back(self) -> list[str]:
        now = self._mapping
        before = dict(zip(self._keys, self._values, strict=True))
        different = [key for key in {**before, **now} if now.get(key, _MISSING) is not before.get(key, _MISSING)]
        names = [
            _label(self.name, key)
            for key in different
            if not _equal_atoms(now.get(key, _MISSING), before.get(key, _MISSING))
        ]
        if isinstance(now, dict):  # in the order in which they were
            now.clear()
            now.update(before)
            return names
        for key in different:
            if key in before:
                self._set(key, before[key])
            else:
                self._delete(key)
        return names


class _Sequence(Holder):
    """A list, deque, set or byte array."""

    __slots__ = ("_holder", "_values")

    def __init__(self, name: str, holder: Any) -> None:
        super().__init__(name)
        self._holder, self._values = holder, list(holder)

    def is_current(self) -> bool:
        return len(self._holder) == len(self._values) and all(map(is_, self._holder, self._values))

    def put_back(self) -> list[str]:
        self._holder.clear()
        (self._holder.update if isinstance(self._holder, set) else self._holder.extend)(self._values)
        return [self.name]


class _Empty(Holder):
    """All containers that held nothing: most of those of a network do not, and one look is enough for them."""

    __slots__ = ("_containers", "_names")

    def __init__(self) -> None:
        super().__init__("")
        self._names: list[str] = []
        self._containers: list[Any] = []

    def add(self, name: str, container: Any) -> None:
        """Include a container."""
        self._names.append(name)
        self._containers.append(container)

    def is_current(self) -> bool:
        return not any(self._containers)

    def put_back(self) -> list[str]:
        filled = [(name, held) for name, held in zip(self._names, self._containers, strict=True) if held]
        names = [_label(name, key) for name, held in filled for key in (held if isinstance(held, dict) else (...,))]
        for _, held in filled:
            held.clear()
        return [name.removesuffix("[Ellipsis]") for name in names]


class _Place(Holder):
    """A place that is read and written by functions: a cell of a closure, a slot, a global name."""

    __slots__ = ("_read", "_value", "_write")

    def __init__(self, name: str, read: Callable[[], Any], write: Callable[[Any], object]) -> None:
        super().__init__(name)
        self._read, self._write, self._value = read, write, read()

    def is_current(self) -> bool:
        return self._read() is self._value

    def put_back(self) -> list[str]:
        now = self._read()
        self._write(self._value)
        return [] if _equal_atoms(now, self._value) else [self.name]


class _Cache(Holder):
    """A function with ``functools.lru_cache``: what it has learnt since is forgotten."""

    __slots__ = ("_function", "_size")

    def __init__(self, name: str, function: Any) -> None:
        super().__init__(name)
        self._function, self._size = function, function.cache_info().currsize

    def is_current(self) -> bool:
        return bool(self._function.cache_info().currsize == self._size)

    def put_back(self) -> list[str]:
        self._function.cache_clear()
        self._size = 0
        return []


class _Numbers(Holder):
    """A tensor or an array that is no parameter and no buffer."""

    __slots__ = ("_by_value", "_copy", "_value", "_version")

    def __init__(self, name: str, value: Any, by_value: bool) -> None:
        super().__init__(name)
        self._value, self._version, self._by_value = value, version_of(value), by_value
        self._copy = value.detach().clone() if isinstance(value, Tensor) else value.copy()

    def is_current(self) -> bool:
        unwritten = version_of(self._value) == self._version
        return unwritten and (not self._by_value or same_values(self._value, self._copy))

    def put_back(self) -> list[str]:
        value = self._value
        if isinstance(value, Tensor):
            with torch.no_grad():
                value.copy_(self._copy)
            self._version = version_of(value)
        else:
            value[...] = self._copy
        return [self.name]


def attributes_of(value: object) -> list[Holder]:
    """The attributes of one object alone, without what they hold."""
    attributes = getattr(value, "__dict__", None)
    return [_Mapping(_name(value), attributes)] if isinstance(attributes, dict) else []


class PythonState:
    """The state of Python that is reachable from some objects, as it is now.

    Followed are attributes, containers, closures, default arguments, attributes of the user's classes, and the global
    names that the user's functions mention. Not followed are data sets and the code of installed packages. Parameters
    and buffers are held where they are, but their values are left to ``UpdateGuard``; generators of random numbers are
    left alone.

    Args:
        roots: Where to begin: a network, a loss.
        by_value: Compare tensors by their values, not only by their versions, which writes to ``.data`` do not change.

    Attributes:
        unfollowed: Names of objects whose state cannot be put back.
        tensors: Those that are neither parameters nor buffers, and whose values are put back.
        complete: Whether everything else was followed; False beyond ``MOST_OBJECTS`` objects or ``MOST_BYTES``.

    Example:
        >>> class Counting(nn.Module):
        ...     calls = 0
        ...     def forward(self, x):
        ...         self.calls += 1
        ...         return x
        >>> network = Counting()
        >>> state = PythonState(network)
        >>> _ = network(torch.zeros(1))
        >>> state.restore()
        ['Counting.calls']
        >>> network.calls
        0
    """

    def __init__(self, *roots: Any, by_value: bool = False) -> None:
        self.complete = True
        self.unfollowed: list[str] = []
        self.tensors: list[Tensor] = []
        self._by_value = by_value
        self._bytes = 0
        self._empty = _Empty()
        self._holders: list[Holder] = [self._empty]
        self._seen: dict[int, Any] = {}  # keeps what was seen alive, so that no id is used twice
        modules = [root for root in roots if isinstance(root, nn.Module)]
        self._watched = {id(value) for root in modules for value in (*root.buffers(), *root.parameters())}
        self._ahead: list[tuple[str, Any]] = [(_name(root), root) for root in roots]
        while self._ahead and self.complete:
            self._visit(*self._ahead.pop())
            self.complete &= len(self._seen) <= MOST_OBJECTS

    def is_current(self) -> bool:
        """Whether nothing has changed since."""
        return all(holder.is_current() for holder in self._holders)

    def restore(self) -> list[str]:
        """Put back everything that has changed; the names of what was different."""
        changed = [holder for holder in self._holders if not holder.is_current()]
        return [name.replace("._modules.", ".") for holder in changed for name in holder.put_back()]

    def _visit(self, name: str, value: Any) -> None:
        if type(value) in _ATOMS or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        for kind, follow in _FOLLOWED:
            if isinstance(value, kind):
                follow(self, name, value)
                return
        self._object(name, value)

    def _later(self, parts: Iterable[tuple[str, Any]]) -> None:
        self._ahead += [(name, part) for name, part in parts if type(part) not in _ATOMS]

    def _nothing(self, name: str, value: Any) -> None:
        """Left alone."""

    def _generator(self, name: str, value: types.GeneratorType[Any, Any, Any]) -> None:
        """What a generator was sent cannot be put back; an isolated pass has nothing to send but tensors."""
        if self._by_value and value.gi_frame is not None:
            self.unfollowed.append(name)

    def _mapping(self, name: str, value: dict[Any, Any]) -> None:
        if not value:
            self._empty.add(name, value)
            return
        self._holders.append(_Mapping(name, value))
        self._later((_label(name, key), part) for key, part in value.items())

    def _sequence(self, name: str, value: Any) -> None:
        if not value:
            self._empty.add(name, value)
            return
        self._holders.append(_Sequence(name, value))
        self._fixed(name, value)

    def _fixed(self, name: str, value: Iterable[Any]) -> None:
        self._later((f"{name}[{at}]", part) for at, part in enumerate(value))

    def _numbers(self, name: str, value: Any) -> None:
        self._bytes += value.nbytes
        self.complete &= self._bytes <= MOST_BYTES
        if self.complete:
            self._holders.append(_Numbers(name, value, self._by_value))
            self.tensors += [value] if isinstance(value, Tensor) else []

    def _tensor(self, name: str, value: Tensor) -> None:
        if id(value) in self._watched:
            return
        if value.layout == torch.strided:
            self._numbers(name, value)
        elif self._by_value:
            self.unfollowed.append(name)

    def _module(self, name: str, value: nn.Module) -> None:
        self._mapping(name, vars(value))
        self._classes(type(value))

    def _object(self, name: str, value: Any) -> None:
        kind = type(value)
        package = kind.__module__.partition(".")[0]
        if package in _LEFT_ALONE and package not in _HOLDING:
            return
        if isinstance(getattr(value, "__dict__", None), dict):
            self._mapping(name, vars(value))
        for slot in _slots(kind):
            if hasattr(value, slot):
                self._place(f"{name}.{slot}", partial(getattr, value, slot), partial(setattr, value, slot))
        self._classes(kind)

    def _classes(self, kind: type) -> None:
        for base in kind.__mro__:
            if id(base) not in self._seen:
                self._visit(base.__name__, base)

    def _class(self, name: str, value: type) -> None:
        if _is_users(value.__module__):
            self._holders.append(_Mapping(name, vars(value), partial(setattr, value), partial(delattr, value)))
            self._later((f"{name}.{key}", part) for key, part in vars(value).items())

    def _place(self, name: str, read: Callable[[], Any], write: Callable[[Any], object]) -> None:
        self._holders.append(_Place(name, read, write))
        self._later([(name, read())])

    def _function(self, name: str, value: types.FunctionType) -> None:
        self._mapping(name, vars(value))
        self._later([(name, value.__defaults__), (name, value.__kwdefaults__)])
        for free, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=False):
            self._place(f"{name}.{free}", partial(_contents, cell), partial(setattr, cell, "cell_contents"))
        if _is_users(value.__module__):
            names = value.__globals__
            mentioned = _mentioned(value.__code__)
            for known in mentioned & names.keys():
                self._place(known, partial(names.get, known), partial(names.__setitem__, known))
            texts = {names[known] for known in mentioned & names.keys() if isinstance(names[known], str)}
            self._later((module, sys.modules[module]) for module in (mentioned | texts) & sys.modules.keys())

    def _method(self, name: str, value: types.MethodType) -> None:
        self._later([(name, value.__self__), (name, value.__func__)])

    def _descriptor(self, name: str, value: Any) -> None:
        self._later([(name, getattr(value, "__func__", None)), (name, getattr(value, "fget", None))])

    def _partial(self, name: str, value: partial[Any]) -> None:
        self._later([(name, value.func), (name, value.args), (name, value.keywords)])

    def _cache(self, name: str, value: Any) -> None:
        self._holders.append(_Cache(name, value))
        self._later([(name, value.__wrapped__)])

    def _python_module(self, name: str, value: types.ModuleType) -> None:
        if _is_users(value.__name__):
            self._holders.append(_Mapping(name, vars(value)))
            held = {key: part for key, part in vars(value).items() if not isinstance(part, _CODE)}
            self._later((f"{name}.{key}", part) for key, part in held.items())


def _name(value: Any) -> str:
    return getattr(value, "__name__", None) or type(value).__name__


def _label(name: str, key: Any) -> str:
    return f"{name}.{key}" if isinstance(key, str) else f"{name}[{key!r:.20}]"


def _is_users(module: str | None) -> bool:
    """Whether a module is neither installed nor this project's."""
    root = (module or "").partition(".")[0]
    if not root or root in _LEFT_ALONE:
        return False
    file = getattr(sys.modules.get(module or ""), "__file__", None)
    if root == "__main__" or file is None:
        return True
    return not file.startswith(_INSTALLED) and _PACKAGES.isdisjoint(PurePath(file).parts)


@functools.cache
def _mentioned(code: types.CodeType) -> frozenset[str]:
    """Names, and texts that may name a module, in a function or in a function inside of it."""
    inner = (part for part in code.co_consts if isinstance(part, types.CodeType))
    texts = (part for part in code.co_consts if isinstance(part, str))
    return frozenset(code.co_names).union(texts, *map(_mentioned, inner))


def _slots(kind: type) -> Iterator[str]:
    for base in kind.__mro__:
        slots = vars(base).get("__slots__", ())
        yield from (slots,) if isinstance(slots, str) else slots


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def version_of(value: Any) -> int:
    """How often a tensor was written to; 0 for what does not count it."""
    return value._version if isinstance(value, Tensor) and not value.is_inference() else 0


def same_values(value: Any, copy: Any) -> bool:
    """Whether two tensors, or two arrays, hold the same numbers; not-a-numbers are the same."""
    if value.shape != copy.shape:
        return False
    if isinstance(value, Tensor):
        return torch.equal(value, copy) or (
            value.is_floating_point() and torch.equal(value.nan_to_num(), copy.nan_to_num())
        )
    return _bytes(value) == _bytes(copy)


def _bytes(array: np.ndarray) -> bytes:
    """Numbers and mask, without the methods of a subclass, which may write to what they are asked about."""
    numbers = np.asarray(array).tobytes()
    return numbers + np.ma.getmaskarray(array).tobytes() if isinstance(array, np.ma.MaskedArray) else numbers


def _equal_atoms(one: Any, other: Any) -> bool:
    return type(one) in _ATOMS and type(one) is type(other) and bool(one == other)


_CODE = (types.ModuleType, types.FunctionType, type)

#: Types that hold nothing that a pass could change.
_ATOMS = frozenset(
    (type(None), bool, int, float, complex, str, bytes, range, torch.dtype, torch.device, torch.Size, types.CodeType)
)

#: Packages whose objects are left alone: their state is no network's.
_LEFT_ALONE = (*sys.stdlib_module_names, *_OWN)

#: Those of the standard library whose objects may hold state of a network all the same.
_HOLDING = ("types", "collections", "queue", "argparse")

#: How objects are followed, by the first kind that fits; others by their attributes.
_FOLLOWED: tuple[tuple[Any, Callable[[PythonState, str, Any], None]], ...] = (
    (Tensor, PythonState._tensor),
    (nn.Module, PythonState._module),
    (dict, PythonState._mapping),
    ((list, set, deque, bytearray), PythonState._sequence),
    ((tuple, frozenset), PythonState._fixed),
    (types.FunctionType, PythonState._function),
    (types.MethodType, PythonState._method),
    ((staticmethod, classmethod, property), PythonState._descriptor),
    (partial, PythonState._partial),
    (type(functools.lru_cache(_mentioned)), PythonState._cache),
    (types.ModuleType, PythonState._python_module),
    (type, PythonState._class),
    (np.ndarray, PythonState._numbers),
    (types.GeneratorType, PythonState._generator),
    (threading.local, lambda state, name, value: state._mapping(name, vars(value))),
    ((Dataset, DataLoader, torch.Generator), PythonState._nothing),
)
