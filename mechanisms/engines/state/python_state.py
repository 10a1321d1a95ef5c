"""The Python state that a network and a loss can reach and change, restored after each pass over private data."""

from __future__ import annotations

import array
import builtins
import contextvars
import ctypes
import functools
import gc
import logging
import sys
import sysconfig
import threading
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch._library.custom_ops import OPDEFS
from torch.utils.data import DataLoader, Dataset

from mechanisms.engines.state import holders, places
from mechanisms.engines.state.generators import GENERATORS
from mechanisms.engines.state.hidden import hides_changes, hides_state, is_fixed, is_inert, module_of, slots_of
from mechanisms.engines.state.holders import ATOMS, Holder, label
from mechanisms.engines.state.names import assigned_names, mentioned_names, read_names
from mechanisms.engines.state.settings import hooks_of_all_modules, process_settings

#: Maximum number of objects to follow; more would take too long to compare after each pass.
MOST_OBJECTS = 50_000

#: Maximum number of bytes of tensors and arrays that are copied in order to restore them.
MOST_BYTES = 64 * 2**20

#: Folders of installed packages. Their code is trusted to keep the state of a network in the network's objects.
_INSTALLED = tuple({sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")})

#: Names of package folders elsewhere: of the system outside a virtual environment, or of ``pip --target``.
_PACKAGES = frozenset(("site-packages", "dist-packages"))
_OWN = ("mechanisms", "dpmodel", "monitors")


def attributes_of(value: object) -> list[Holder]:
    """A holder of the attributes of one object, without the objects that they refer to."""
    attributes = getattr(value, "__dict__", None)
    return [holders.Mapping(_name(value), attributes)] if isinstance(attributes, dict) else []


class PythonState:
    """The current Python state that is reachable from some objects.

    It follows attributes, containers, closures, default arguments, attributes of the user's classes, and global names
    that the user's functions mention, but does not enter the code of installed packages. Random generators are only
    listed.

    Args:
        roots: The objects to start from: a network, a loss.
        by_value: Follow everything that can hold a value of an example, and compare tensors by value, since writes to
            ``.data`` do not change their versions. Otherwise the code is known to see only tensors, so data sets,
            generators and most objects of the standard library are ignored.
        weights: Also restore parameters and buffers, which ``UpdateGuard`` compares only once per step.

    Attributes:
        unfollowed: Names of objects whose state cannot be recorded.
        kept: Names of objects that ``restore`` could not restore.
        tensors: Tensors, other than parameters and buffers, whose values are restored.
        generators: Random generators.
        read: All tensors with strided layout, parameters and buffers included.
        opaque: Names of objects whose content may change without notice. None of them can keep a value of an example,
            or they are among ``unfollowed``.
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

    def __init__(self, *roots: Any, by_value: bool = False, weights: bool = False) -> None:
        self.complete = True
        self.unfollowed: list[str] = []
        self.kept: list[str] = []
        self.tensors: list[Tensor] = []
        self.generators: list[Any] = []
        self.read: list[Tensor] = []
        self.opaque: list[str] = []
        self._by_value, self._with_weights = by_value, weights
        self._bytes = 0
        self._empty = holders.Empty()
        self._classes = holders.Classes()
        self._holders: list[Holder] = [self._empty, self._classes]
        self._seen: dict[int, Any] = {}  # keeps seen objects alive, so that no id is reused
        self._kinds: dict[int, _Kind] = {}
        self._globals: dict[int, places.GlobalNames] = {}
        modules = [root for root in roots if isinstance(root, nn.Module)]
        named = (pair for root in modules for pair in (*root.named_buffers(), *root.named_parameters()))
        self._weights = {id(value): name for name, value in named}
        self._ahead: list[tuple[str, Any]] = [*hooks_of_all_modules(), *((_name(root), root) for root in roots)]
        if by_value:
            self._holders += process_settings()
            for operator in filter(
                _is_of_users, tuple(OPDEFS.values())
            ):  # called by a name, not through a function object
                functions = (operator._init_fn, operator._backward_fn, *operator._backend_fns.values())
                self._later((operator._name, function) for function in functions)
        while self._ahead and self.complete:
            self._visit(*self._ahead.pop())
            self.complete &= len(self._seen) <= MOST_OBJECTS

    def is_current(self) -> bool:
        """Whether nothing has changed since the recording."""
        return all(holder.is_current() for holder in self._holders)

    def restore(self) -> list[str]:
        """Restore everything that has changed; return the names of what differed."""
        changed = [holder for holder in self._holders if not holder.is_current()]
        names = [*dict.fromkeys(_readable(name) for holder in changed for name in holder.put_back())]
        self.kept += [_readable(holder.name) for holder in changed if not holder.is_current()]
        return names

    @property
    def weights(self) -> set[str]:
        """Names of the parameters and buffers."""
        return set(self._weights.values())

    def _visit(self, name: str, value: Any) -> None:
        if type(value) in ATOMS or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        kind = self._kind_of(value)
        kind.follow(self, name, value)
        if kind.is_closed:
            return
        if not kind.is_sealed:
            self._attributes(name, value, kind)
        elif not is_fixed(value):
            self.opaque.append(name)

    def _kind_of(self, value: Any) -> _Kind:
        """How to follow ``value``: the same for all objects of a class, except those that pretend to be of another."""
        kind = type(value)
        known = self._kinds.get(id(kind))
        if known is None or value.__class__ is not kind:
            follow = next((follow for of, follow in _FOLLOWED if isinstance(value, of)), PythonState._object)
            is_closed = isinstance(value, (type, types.ModuleType, logging.Logger))
            known = _Kind(kind, follow, is_closed, not is_closed and self._is_sealed(value), (*slots_of(kind),))
            if value.__class__ is kind:
                self._kinds[id(kind)] = known
        return known

    def _is_sealed(self, value: Any) -> bool:
        """Whether the attributes of ``value`` are ignored."""
        package = module_of(type(value)).partition(".")[0]
        if package in _OWN:
            return not isinstance(value, nn.Module)
        if self._by_value:
            return False
        return isinstance(value, (Dataset, DataLoader)) or (package in sys.stdlib_module_names - _HOLDING)

    def _later(self, parts: Iterable[tuple[str, Any]]) -> None:
        self._ahead += [(name, part) for name, part in parts if type(part) not in ATOMS]

    def _nothing(self, name: str, value: Any) -> None:
        """Follow nothing but the attributes."""

    def _mapping(self, name: str, value: dict[Any, Any]) -> None:
        if not value:
            self._empty.add(name, value)
            return
        self._holders.append(holders.Mapping(name, value))
        self._later((label(name, key), part) for key, part in value.items())
        self._later((name, key) for key in value)

    def _sequence(self, name: str, value: Any) -> None:
        if not value:
            self._empty.add(name, value)
            return
        self._holders.append(holders.Sequence(name, value))
        self._fixed(name, value)

    def _fixed(self, name: str, value: Iterable[Any]) -> None:
        self._later((f"{name}[{at}]", part) for at, part in enumerate(value))

    def _has_room(self, value: Any) -> bool:
        self._bytes += value.nbytes
        self.complete &= self._bytes <= MOST_BYTES
        return self.complete

    def _array(self, name: str, value: np.ndarray) -> None:
        if self._has_room(value):
            self._holders.append(holders.ArrayValue(name, value))
        if value.dtype.hasobject:
            self._fixed(name, value.flat)

    def _tensor(self, name: str, value: Tensor) -> None:
        weight = self._weights.get(id(value))
        if self._by_value and value.is_leaf:
            self._attribute(f"{name}.grad", value, "grad")
            self._attribute(f"{name}._backward_hooks", value, "_backward_hooks")
        if value.layout != torch.strided:
            self.opaque.append(name)
            self.unfollowed += [name] if self._by_value else []
            return
        self.read.append(value)
        if weight is not None:
            self._holders += [holders.TensorValue(weight, value, self._by_value)] if self._with_weights else []
        elif self._has_room(value):
            self._holders.append(holders.TensorValue(name, value, self._by_value))
            self.tensors.append(value)

    def _attributes(self, name: str, value: Any, kind: _Kind) -> None:
        if isinstance(attributes := getattr(value, "__dict__", None), dict):
            self._mapping(name, attributes)
        for slot in kind.slots:
            self._attribute(f"{name}.{slot}", value, slot)
        for base in kind.type.__mro__:
            if id(base) not in self._seen:
                self._visit(base.__name__, base)
        self._classes.add(name, value)

    def _attribute(self, name: str, owner: Any, key: str) -> None:
        self._place(places.Slot(name, owner, key))

    def _place(self, place: places.Place | places.Slot) -> None:
        self._holders.append(place)
        if place.value is not holders.MISSING:
            self._later([(place.name, place.value)])

    def _object(self, name: str, value: Any) -> None:
        """State hidden in compiled code; only code that can read values can store information there."""
        if not hides_state(type(value)):
            return
        if not self._by_value:
            self._later([(name, getattr(value, "__self__", None))])  # a method of a compiled type
            self.opaque += [name] if hides_changes(value) else []
            return
        self._later((name, part) for part in gc.get_referents(value))
        if is_inert(value):
            return
        try:
            self._holders.append(holders.Pickled(name, value))
        except Exception:  # whatever its own code raises
            self.unfollowed.append(name)

    def _class(self, name: str, value: type) -> None:
        users = _is_users(module_of(value))
        if users or (self._by_value and value.__flags__ & (_HEAP | _IMMUTABLE) == _HEAP):
            write, delete = partial(setattr, value), partial(delattr, value)
            self._holders.append(holders.Mapping(name, vars(value), write, delete))
        if users:
            self._later((f"{name}.{key}", part) for key, part in vars(value).items())
            self._later([(type(value).__name__, type(value))])

    def _function(self, name: str, value: types.FunctionType) -> None:
        self._holders.append(places.Function(name, value))
        self._later([(f"{name}.__defaults__", value.__defaults__), (f"{name}.__kwdefaults__", value.__kwdefaults__)])
        for free, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=False):
            self._attribute(f"{name}.{free}", cell, "cell_contents")
        names = value.__globals__
        home = names.get("__name__")  # functools.wraps copies the name of another module
        if _is_users(home) or _is_users(value.__module__ or home):
            mentioned, read = mentioned_names(value.__code__), read_names(value.__code__)
            absent = read - names.keys() - _BUILTIN  # may be defined later
            self._later(self._globals_of(names).add(read & names.keys() | absent | assigned_names(value.__code__)))
            self._new_names("", names)
            for module in (names[known] for known in read & names.keys()):
                self._functions_of(module, mentioned)
            texts = {names[known] for known in read & names.keys() if isinstance(names[known], str)}
            self._later((module, sys.modules[module]) for module in (mentioned | texts) & sys.modules.keys())

    def _globals_of(self, names: dict[str, Any]) -> places.GlobalNames:
        known = self._globals.get(id(names))
        if known is None:
            known = self._globals[id(names)] = places.GlobalNames(names)
            self._holders.append(known)
        return known

    def _method(self, name: str, value: types.MethodType) -> None:
        self._later([(name, value.__self__), (name, value.__func__)])

    def _descriptor(self, name: str, value: Any) -> None:
        self._later([(name, getattr(value, "__func__", None)), (name, getattr(value, "fget", None))])

    def _partial(self, name: str, value: partial[Any]) -> None:
        self._later([(name, value.func), (name, value.args), (name, value.keywords)])

    def _cache(self, name: str, value: Any) -> None:
        self._holders.append(holders.Cache(name, value))
        self._later([(name, value.__wrapped__)])

    def _new_names(self, name: str, names: dict[str, Any], *left: type) -> None:
        if self._by_value and -id(names) not in self._seen:  # negative: the id of the namespace itself may be in use
            self._seen[-id(names)] = names
            self._holders.append(holders.NewNames(name, names, left))

    def _functions_of(self, module: Any, mentioned: Iterable[str]) -> None:
        """Attributes of the functions of an installed module, which the user's code may set by name."""
        if self._by_value and isinstance(module, types.ModuleType) and not _is_users(module.__name__):
            functions = {
                key: part for key in mentioned if isinstance(part := vars(module).get(key), types.FunctionType)
            }
            self._holders += [holders.Mapping(key, vars(part)) for key, part in functions.items()]

    def _python_module(self, name: str, value: types.ModuleType) -> None:
        if not _is_users(value.__name__):
            self._new_names(name, vars(value), *_CODE, types.BuiltinFunctionType)
        else:
            self._holders.append(holders.Mapping(name, vars(value)))
            code = types.ModuleType if self._by_value else _CODE
            held = {key: part for key, part in vars(value).items() if not isinstance(part, code)}
            self._later((f"{name}.{key}", part) for key, part in held.items())

    def _reference(self, name: str, value: weakref.ref[Any]) -> None:
        self._later([(name, value())])

    def _variable(self, name: str, value: contextvars.ContextVar[Any]) -> None:
        self._place(places.Place(name, value.get, value.set))

    def _scripted(self, name: str, value: torch.jit.ScriptModule) -> None:
        compiled = vars(value).get("_c")  # a traced module holds it one level deeper
        self.opaque.append(name)
        if self._by_value and compiled is not None:
            for key in value._concrete_type.get_attributes():
                self._holders.append(holders.Attribute(name, compiled, key))

    def _generator(self, name: str, value: Any) -> None:
        self.generators.append(value)

    def _memory(self, name: str, value: Any) -> None:
        if not self._by_value:
            self.opaque.append(name)
            return
        try:
            self._holders.append(holders.Buffer(name, value))
        except (TypeError, BufferError):  # not contiguous
            self.unfollowed.append(name)

    def _lock(self, name: str, value: Any) -> None:
        if self._by_value:
            self._holders.append(holders.Lock(name, value))

    def _logger(self, name: str, value: logging.Logger) -> None:
        """Its level and similar attributes, but not its handlers, whose streams the code cannot read back."""
        if self._by_value:
            self._holders.append(holders.Mapping(name, vars(value)))


class _Kind(NamedTuple):
    """What is the same for all objects of a class.

    Args:
        type: The class.
        follow: Follows what an object holds, except for its attributes.
        is_closed: Whether ``follow`` takes care of the attributes too.
        is_sealed: Whether the attributes are ignored.
        slots: Names of its slots.
    """

    type: type
    follow: Callable[[PythonState, str, Any], None]
    is_closed: bool
    is_sealed: bool
    slots: tuple[str, ...]


def _name(value: Any) -> str:
    return getattr(value, "__name__", None) or type(value).__name__


def _readable(name: str) -> str:
    return name.replace("._modules.", ".")


def _is_users(module: object) -> bool:
    """Whether a module is neither installed nor part of this project; code that names none is the user's."""
    if not isinstance(module, str) or not module:
        return True
    root = module.partition(".")[0]
    if root in _OWN or root in sys.stdlib_module_names:
        return False
    file = getattr(sys.modules.get(module), "__file__", None)
    if root == "__main__" or file is None:
        return True
    return not file.startswith(_INSTALLED) and _PACKAGES.isdisjoint(PurePath(file).parts)


def _is_of_users(operator: Any) -> bool:
    return _is_users(operator._init_fn.__module__)


_CODE = (types.ModuleType, types.FunctionType, type)

#: Bits of ``__flags__`` of a type: created at run time; attributes cannot be set.
_HEAP, _IMMUTABLE = 1 << 9, 1 << 8

_BUILTIN = frozenset(vars(builtins))

#: Standard library packages whose objects may hold state of a network even if the code cannot read values.
_HOLDING = frozenset(("builtins", "types", "collections", "functools", "queue", "argparse"))

#: How to follow an object, by the first matching type; its attributes come after that.
_FOLLOWED: tuple[tuple[Any, Callable[[PythonState, str, Any], None]], ...] = (
    (Tensor, PythonState._tensor),
    (torch.jit.ScriptModule, PythonState._scripted),
    (nn.Module, PythonState._nothing),
    (dict, PythonState._mapping),
    ((list, set, deque, bytearray), PythonState._sequence),
    ((tuple, frozenset), PythonState._fixed),
    (types.FunctionType, PythonState._function),
    (types.MethodType, PythonState._method),
    ((staticmethod, classmethod, property), PythonState._descriptor),
    (partial, PythonState._partial),
    (type(functools.lru_cache(mentioned_names)), PythonState._cache),
    (types.ModuleType, PythonState._python_module),
    (type, PythonState._class),
    (np.ndarray, PythonState._array),
    ((array.array, memoryview, ctypes._SimpleCData, ctypes.Array, ctypes.Structure), PythonState._memory),
    (tuple({type(threading.Lock()), type(threading.RLock())}), PythonState._lock),
    (weakref.ref, PythonState._reference),
    (contextvars.ContextVar, PythonState._variable),
    (logging.Logger, PythonState._logger),
    (threading.local, lambda state, name, value: state._mapping(name, vars(value))),
    (GENERATORS, PythonState._generator),
)
