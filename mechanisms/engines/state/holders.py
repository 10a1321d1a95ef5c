"""Records of what single Python objects hold, to be compared and restored."""

from __future__ import annotations

import array
import copy
import pickle
import sys
import types
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: Marks a missing value.
MISSING = object()


class Holder(ABC):
    """One object that holds others, and what it held when the state was recorded."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def is_current(self) -> bool:
        """Whether the object still holds what was recorded."""

    @abstractmethod
    def put_back(self) -> list[str]:
        """Restore what was recorded; return the names of what differed."""


class Mapping(Holder):
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
        different = [key for key in {**before, **now} if now.get(key, MISSING) is not before.get(key, MISSING)]
        names = [
            label(self.name, key)
            for key in different
            if not equal_atoms(now.get(key, MISSING), before.get(key, MISSING))
        ]
        if isinstance(now, dict):  # restores the order too
            now.clear()
            now.update(before)
            return names
        for key in different:
            if key in before:
                self._set(key, before[key])
            else:
                self._delete(key)
        return names


class NewNames(Holder):
    """The global names of a module: new names are deleted.

    Exceptions are modules, which late imports add, and names that the interpreter and PyTorch's compiler add.

    Args:
        name: Name of the module; empty to report names without a prefix.
        names: The namespace of the module.
        left: Types of further values to leave alone: packages load functions on first use.
    """

    __slots__ = ("_known", "_last", "_left", "_names")

    def __init__(self, name: str, names: dict[str, Any], left: tuple[type, ...] = ()) -> None:
        super().__init__(name)
        self._left = left
        self._names, self._known = names, set(names)
        self._last = next(reversed(names), None)

    def is_current(self) -> bool:
        return len(self._names) == len(self._known) and next(reversed(self._names), None) == self._last

    def put_back(self) -> list[str]:
        added = {key: value for key, value in [*self._names.items()] if key not in self._known}
        new = [key for key, value in added.items() if not isinstance(value, self._left) and not _is_noted(key, value)]
        for key in new:
            del self._names[key]
        self._known, self._last = set(self._names), next(reversed(self._names), None)
        return [label(self.name, key) if self.name else key for key in new]


class Sequence(Holder):
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


class Empty(Holder):
    """All containers that were empty: most containers of a network are, and one test covers them all."""

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
        names = [label(name, key) for name, held in filled for key in (held if isinstance(held, dict) else (...,))]
        for _, held in filled:
            held.clear()
        return [name.removesuffix("[Ellipsis]") for name in names]


class Classes(Holder):
    """The classes of objects, which code can exchange: one test covers them all."""

    __slots__ = ("_kinds", "_names", "_objects")

    def __init__(self) -> None:
        super().__init__("")
        self._names: list[str] = []
        self._objects: list[Any] = []
        self._kinds: list[type] = []

    def add(self, name: str, value: Any) -> None:
        """Include an object."""
        self._names.append(name)
        self._objects.append(value)
        self._kinds.append(type(value))

    def is_current(self) -> bool:
        return all(map(is_, map(type, self._objects), self._kinds))

    def put_back(self) -> list[str]:
        held = zip(self._names, self._objects, self._kinds, strict=True)
        changed = [(name, value, kind) for name, value, kind in held if type(value) is not kind]
        for _, value, kind in changed:
            object.__setattr__(value, "__class__", kind)
        return [f"{name}.__class__" for name, *_ in changed]


class Cache(Holder):
    """A function with ``functools.lru_cache``: if it was called since, its cache is cleared."""

    __slots__ = ("_function", "_info")

    def __init__(self, name: str, function: Any) -> None:
        super().__init__(name)
        self._function, self._info = function, function.cache_info()

    def is_current(self) -> bool:
        return bool(self._function.cache_info() == self._info)

    def put_back(self) -> list[str]:
        self._function.cache_clear()
        self._info = self._function.cache_info()
        return []


class TensorValue(Holder):
    """Values and layout of a tensor: entries, shape, strides, memory, and ``requires_grad``.

    Args:
        name: Name of the tensor.
        value: The tensor, with strided layout.
        by_value: Compare values, not only the version counter, which writes to ``.data`` do not increase.
    """

    __slots__ = ("_by_value", "_copy", "_data", "_layout", "_value", "_version")

    def __init__(self, name: str, value: Tensor, by_value: bool) -> None:
        super().__init__(name)
        self._value, self._version, self._by_value = value, version_of(value), by_value
        self._data, self._copy, self._layout = value.detach(), value.detach().clone(), _layout(value)

    def is_current(self) -> bool:
        if version_of(self._value) != self._version:
            return False
        return not self._by_value or (_layout(self._value) == self._layout and same_values(self._data, self._copy))

    def put_back(self) -> list[str]:
        with torch.no_grad():
            if _layout(self._value) != self._layout:
                self._value.data = self._data
                self._value.requires_grad = self._layout[0]
            self._data.copy_(self._copy)
        self._version = version_of(self._value)
        return [self.name]


class ArrayValue(Holder):
    """Values of a NumPy array, and whether it is writeable."""

    __slots__ = ("_copy", "_value", "_writable")

    def __init__(self, name: str, value: np.ndarray) -> None:
        super().__init__(name)
        self._value, self._copy, self._writable = value, value.copy(), value.flags.writeable

    def is_current(self) -> bool:
        return self._value.flags.writeable == self._writable and same_values(self._value, self._copy)

    def put_back(self) -> list[str]:
        if not same_values(self._value, self._copy):
            self._value.setflags(write=True)
            self._value[...] = self._copy
        self._value.setflags(write=self._writable)
        return [self.name]


class Buffer(Holder):
    """Memory that can be written as bytes: ``array.array``, ``memoryview``, ``ctypes``."""

    __slots__ = ("_copy", "_value")

    def __init__(self, name: str, value: Any) -> None:
        super().__init__(name)
        self._value, self._copy = value, _bytes(value)

    def is_current(self) -> bool:
        return _bytes(self._value) == self._copy

    def put_back(self) -> list[str]:
        if isinstance(self._value, array.array):  # its length may have changed
            self._value[:] = array.array(self._value.typecode, self._copy)
        else:
            memoryview(self._value).cast("B")[:] = self._copy
        return [self.name]


class Lock(Holder):
    """A lock: held or not."""

    __slots__ = ("_held", "_lock")

    def __init__(self, name: str, lock: Any) -> None:
        super().__init__(name)
        self._lock, self._held = lock, _is_held(lock)

    def is_current(self) -> bool:
        return _is_held(self._lock) == self._held

    def put_back(self) -> list[str]:
        if self._held:
            self._lock.acquire()
        while not self.is_current():
            self._lock.release()
        return [self.name]


class Pickled(Holder):
    """An object that hides its state: the output of ``pickle``.

    Raises:
        Exception: Any error of ``pickle`` for an object that it cannot write.
    """

    __slots__ = ("_state", "_text", "_value")

    def __init__(self, name: str, value: Any) -> None:
        super().__init__(name)
        self._value, self._text = value, _pickled(value)
        state = value.__reduce_ex__(pickle.HIGHEST_PROTOCOL)[2:3] if hasattr(value, "__setstate__") else ()
        self._state = copy.deepcopy(state)

    def is_current(self) -> bool:
        return _pickled(self._value) == self._text

    def put_back(self) -> list[str]:
        """Restore the state if the object has ``__setstate__``."""
        for state in self._state:
            self._value.__setstate__(copy.deepcopy(state))
        return [self.name]


class Attribute(Holder):
    """An attribute of a scripted module; each access copies it from compiled code."""

    __slots__ = ("_key", "_module", "_text")

    def __init__(self, name: str, module: Any, key: str) -> None:
        super().__init__(f"{name}.{key}")
        self._module, self._key, self._text = module, key, _pickled(module.getattr(key))

    def is_current(self) -> bool:
        return _pickled(self._module.getattr(self._key)) == self._text

    def put_back(self) -> list[str]:
        self._module.setattr(self._key, pickle.loads(self._text))
        return [self.name]


def label(name: str, key: Any) -> str:
    """The name of what an object holds under a key."""
    return f"{name}.{key}" if isinstance(key, str) else f"{name}[{key!r:.20}]"


def version_of(value: Any) -> int:
    """The version counter of a tensor, which counts writes; 0 for objects without one."""
    return value._version if isinstance(value, Tensor) and not value.is_inference() else 0


def same_values(value: Any, copy: Any) -> bool:
    """Whether two tensors, or two arrays, hold the same values; NaN equals NaN."""
    if value.shape != copy.shape:
        return False
    if isinstance(value, Tensor):
        return torch.equal(value, copy) or (
            value.is_floating_point() and torch.equal(value.nan_to_num(), copy.nan_to_num())
        )
    return _numbers(value) == _numbers(copy)


def _is_noted(name: str, value: Any) -> bool:
    """Whether a new global name is an imported module, or was added by the interpreter or PyTorch's compiler."""
    if isinstance(value, types.ModuleType):
        return sys.modules.get(value.__name__) is value
    return name == "__warningregistry__" or ("torch._dynamo" in sys.modules and name.startswith(("__", "torch_dynamo")))


def equal_atoms(one: Any, other: Any) -> bool:
    """Whether two values are immutable, of one type, and equal."""
    return type(one) in ATOMS and type(one) is type(other) and bool(one == other)


def _numbers(value: np.ndarray) -> bytes:
    """Bytes of the values and the mask; avoids methods of a subclass, which may write to the array."""
    numbers = np.asarray(value).tobytes()
    return numbers + np.ma.getmaskarray(value).tobytes() if isinstance(value, np.ma.MaskedArray) else numbers


def _layout(value: Tensor) -> tuple[Any, ...]:
    return value.requires_grad, value.dtype, value.shape, value.stride(), value.data_ptr()


def _bytes(value: Any) -> bytes:
    return memoryview(value).cast("B").tobytes()


def _is_held(lock: Any) -> bool:
    return bool(lock.locked() if hasattr(lock, "locked") else lock._is_owned())


def _pickled(value: Any) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of iterators, from Python 3.12 on
        return pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)


#: Types of immutable values.
ATOMS = frozenset(
    (
        *map(type, (None, ..., NotImplemented)),
        *(bool, int, float, complex, str, bytes, range, slice),
        *(torch.dtype, torch.device, torch.Size, types.CodeType),
    )
)
