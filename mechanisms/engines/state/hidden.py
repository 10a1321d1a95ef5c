"""Objects that hold state in compiled code, where neither their attributes nor their slots show it."""

from __future__ import annotations

import contextvars
import ctypes
import datetime
import inspect
import io
import numbers
import operator
import re
import types
import weakref
from abc import ABC
from collections.abc import Iterator
from typing import Any

import numpy as np


def slots_of(kind: type) -> Iterator[str]:
    """Names of the slots of a class and its bases."""
    for base in kind.__mro__:
        slots = vars(base).get("__slots__", ())
        names = (slots,) if isinstance(slots, str) else slots
        yield from (name for name in names if name not in ("__dict__", "__weakref__"))


def module_of(kind: type) -> str:
    """Module that a class names as its own; empty for a compiled class whose instances name theirs instead.

    Example:
        >>> module_of(re.Pattern), module_of(type("Kind", (), {"__module__": property(id)}))
        ('re', '')
    """
    module = kind.__module__
    return module if isinstance(module, str) else ""


def hides_state(kind: type) -> bool:
    """Whether an instance holds more than ``__dict__`` and ``__slots__`` account for, in compiled code."""
    pointers = len([*slots_of(kind)]) + sum(offset > 0 for offset in (kind.__dictoffset__, kind.__weakrefoffset__))
    return kind.__itemsize__ > 0 or kind.__basicsize__ > object.__basicsize__ + pointers * _POINTER


def is_inert(value: Any) -> bool:
    """Whether an object cannot change, or code cannot read back what changes in it."""
    if isinstance(value, io.IOBase):
        return value.closed or not value.readable()
    if isinstance(value, types.GeneratorType):
        return value.gi_frame is None
    kind = type(value)
    if module_of(kind).startswith(("torch", "pybind11_builtins")):
        return kind.__name__ not in _OF_TORCH
    return isinstance(value, _INERT)


def hides_changes(value: Any) -> bool:
    """Whether code may read something different from an object that hides its state, or from what it refers to, later.

    Example:
        >>> numbers = {"scale": 1.0}
        >>> hides_changes(iter([1, 2])), hides_changes(types.MappingProxyType(numbers)), hides_changes(numbers.get)
        (True, True, False)
    """
    return not _is_of_fixed_package(value) and (isinstance(value, types.MappingProxyType) or not is_inert(value))


def is_fixed(value: Any) -> bool:
    """Whether an object, whose attributes are not followed, holds none that may change."""
    return _is_of_fixed_package(value) or not (hasattr(value, "__dict__") or any(slots_of(type(value))))


def _is_of_fixed_package(value: Any) -> bool:
    return module_of(type(value)).partition(".")[0] in _FIXED


_POINTER = ctypes.sizeof(ctypes.c_void_p)

#: Packages whose objects never change, or change nothing that a network computes.
_FIXED = frozenset(
    (
        *(
            "abc",
            "ast",
            "dataclasses",
            "datetime",
            "decimal",
            "enum",
            "fractions",
            "inspect",
            "logging",
            "numbers",
            "operator",
        ),
        *("pathlib", "random", "re", "string", "typing", "uuid", "warnings", "zoneinfo", "_thread", "__future__"),
        *("mechanisms", "dpmodel", "monitors"),
    )
)

#: Compiled types without state; the objects that they refer to are followed.
_INERT = (
    *(numbers.Number, str, bytes, np.generic, np.dtype, np.ufunc, re.Pattern, re.Match),
    *(datetime.date, datetime.time, datetime.timedelta, datetime.tzinfo, slice, types.MappingProxyType),
    *(types.BuiltinFunctionType, types.MethodWrapperType, types.WrapperDescriptorType, types.MethodDescriptorType),
    *(types.ClassMethodDescriptorType, types.GetSetDescriptorType, types.MemberDescriptorType, types.CodeType),
    *(types.GenericAlias, types.UnionType, operator.itemgetter, operator.attrgetter, operator.methodcaller),
    *(weakref.ref, contextvars.ContextVar, type(vars(ABC)["_abc_impl"]), type(vars(inspect.FullArgSpec)["args"])),
)

#: Compiled types of torch whose content code can read back.
_OF_TORCH = frozenset(("ScriptObject", "ScriptDict", "ScriptList", "Future", "Event"))
