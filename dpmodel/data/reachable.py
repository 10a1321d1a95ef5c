"""The objects that a data set, a transform or a network holds, directly or indirectly."""

from __future__ import annotations

import dis
import functools
import numbers
import sys
import sysconfig
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import PurePath
from typing import Any

import numpy as np
import torch

from mechanisms.engines.state.hidden import module_of

#: Largest number of visited objects, so that a search stays short.
MAX_OBJECTS = 10_000

#: Elements of a long container that decide whether it is visited.
_PROBED = 32


def _type_test(*kinds: type) -> Callable[[Any], bool]:
    """``isinstance``, remembered for each type: abstract classes such as ``Mapping`` take long to decide."""
    is_subclass = functools.lru_cache(maxsize=4096)(lambda kind: issubclass(kind, kinds))

    def is_instance(value: Any) -> bool:
        kind = type(value)
        if type(kind) is type and value.__class__ is kind:  # neither a proxy nor a class with an `__eq__` of its own
            return is_subclass(kind)
        try:
            return isinstance(value, kinds)
        except TypeError:  # abstract classes cannot decide about classes that cannot be hashed
            return False

    return is_instance


_is_leaf = _type_test(
    str,
    bytes,
    bytearray,
    memoryview,
    numbers.Number,
    type(None),
    type,
    types.ModuleType,
    types.BuiltinFunctionType,
    PurePath,
    np.ndarray,
    np.generic,
    np.dtype,
    torch.Tensor,
    torch.dtype,
    torch.device,
    torch.Size,
    torch.Generator,
    np.random.Generator,
    np.random.RandomState,
    np.random.BitGenerator,
)
_is_mapping = _type_test(Mapping)
_is_container = _type_test(list, tuple, set, frozenset, deque)

#: Leaves that no caller needs.
_is_worthless = _type_test(
    str, bytes, numbers.Number, type(None), type, types.ModuleType, PurePath, torch.dtype, torch.device
)

#: Instructions that read a global name.
_READS_A_GLOBAL = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})

#: Folders of installed packages: their functions and class bodies hold nothing of the user's.
_INSTALLED = frozenset({"site-packages", "dist-packages"})

#: This library's packages, wherever they are installed: their globals know of all trainings of the process.
_OWN = frozenset({"dpmodel", "mechanisms", "monitors"})


def _is_own(module_name: str) -> bool:
    return module_name.partition(".")[0] in _OWN


@functools.cache
def _is_library(module_name: str) -> bool:
    if _is_own(module_name):
        return True
    module = sys.modules.get(module_name)
    path = getattr(module, "__file__", None)
    if path is None:
        return module_name.partition(".")[0] in sys.builtin_module_names
    return path.startswith(sysconfig.get_path("stdlib")) or not _INSTALLED.isdisjoint(PurePath(path).parts)


def reachable(*roots: Any, data: bool = False) -> list[Any]:
    """All objects that ``roots`` hold through attributes, containers, closures, partials and global names.

    The nearest objects come first. At most ``MAX_OBJECTS`` are visited. The results include tensors, arrays and random
    number generators.

    Args:
        *roots: Any objects.
        data: Also the elements of long containers of tensors and arrays, which take time and hold no generators.

    Example:
        >>> import random
        >>> generator = random.Random(0)
        >>> generator in reachable(functools.partial(print, {"augmentation": [generator]}))
        True
    """
    waiting, seen = deque(roots), {id(root) for root in roots}
    found: list[Any] = []
    while waiting and len(found) < MAX_OBJECTS:
        value = waiting.popleft()
        found.append(value)
        with suppress(Exception):  # proxies may fail at any access
            for child in _children(value, data):
                if id(child) not in seen and not _is_worthless(child):
                    seen.add(id(child))
                    waiting.append(child)
    return found


def _children(value: Any, data: bool) -> Iterable[Any]:
    if _is_leaf(value):
        return ()
    if _is_mapping(value):
        return _elements(value, data)
    if _is_container(value):
        return (*_elements(value, data), *_attributes(value))
    if isinstance(value, functools.partial):
        return (value.func, value.args, value.keywords)
    if isinstance(value, types.FunctionType):
        return _of_function(value)
    if isinstance(value, types.MethodType):
        return (value.__self__, value.__func__)
    if isinstance(value, (staticmethod, classmethod)):
        return (value.__func__,)
    if isinstance(value, property):
        return (value.fget,)
    return _attributes(value)


def _elements(container: Any, data: bool) -> list[Any]:
    """The elements of a container; of a long one that begins with plain data, at most its tensors and arrays."""
    values = container.values() if _is_mapping(container) else container
    if len(values) > _PROBED and all(_is_plain(element) for element in islice(values, _PROBED)):
        return [element for element in islice(values, MAX_OBJECTS) if not _is_worthless(element)] if data else []
    return list(islice(values, MAX_OBJECTS))


def _is_plain(element: Any) -> bool:
    if _is_container(element):
        return all(_is_leaf(part) for part in element)
    if isinstance(element, dict):
        return all(_is_leaf(part) for part in element.values())
    return _is_leaf(element) and not isinstance(element, (torch.Generator, np.random.Generator))


def _attributes(value: Any) -> Iterator[Any]:
    yield from list(getattr(value, "__dict__", {}).values())
    for kind in type(value).__mro__:
        for name in _names_of_slots(kind) if "__slots__" in kind.__dict__ else ():
            yield getattr(value, name, None)
        if not _is_library(module_of(kind)):
            yield from list(kind.__dict__.values())


def _names_of_slots(kind: type) -> tuple[str, ...]:
    slots = kind.__dict__["__slots__"]
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _of_function(function: types.FunctionType) -> Iterator[Any]:
    home = function.__globals__.get("__name__")  # functools.wraps copies the name of another module
    own = isinstance(home, str) and _is_own(home)
    if isinstance(home, str) and _is_library(home) and not own:
        return
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # an empty cell
            continue
    yield from (function.__defaults__, function.__kwdefaults__, function.__dict__)
    if own:
        return
    names = _names_in(function.__code__)
    for name in _globals_in(function.__code__):
        value = function.__globals__.get(name)
        if isinstance(value, types.ModuleType):
            yield from _of_module(value, names)
        else:
            yield value


def _of_module(module: types.ModuleType, names: set[str]) -> Iterator[Any]:
    if not _is_library(module.__name__):
        yield from (vars(module)[name] for name in names if name in vars(module))


@functools.lru_cache(maxsize=4096)
def _names_in(code: types.CodeType) -> set[str]:
    """Names of globals and attributes that a function and its inner functions use."""
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*(_names_in(part) for part in inner))


@functools.lru_cache(maxsize=4096)
def _globals_in(code: types.CodeType) -> set[str]:
    """Names of globals that a function and its inner functions read."""
    own = {str(each.argval) for each in dis.get_instructions(code) if each.opname in _READS_A_GLOBAL}
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return own.union(*(_globals_in(part) for part in inner))
