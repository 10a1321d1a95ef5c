"""Detects whether functions and kernels that PyTorch's layers use have been replaced."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mechanisms.engines.isolation.substitutes import Substitutes
from mechanisms.engines.state.hidden import module_of

_ROOT = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep

#: Methods of tensors that layers do not use for computation.
_SHOWING = frozenset({"__repr__", "__format__", "__dir__", "__str__", "register_hook", "grad_fn"})

#: Modules of the layers that run on the rows of all examples.
_WITH_PARAMETERS = (
    *(nn.modules.linear, nn.modules.conv, nn.modules.sparse, nn.modules.rnn, nn.modules.activation),
    *(nn.modules.normalization, nn.modules.batchnorm, nn.modules.instancenorm),
)

#: Dispatch keys whose kernels compute no values.
_WITHOUT_NUMBERS = frozenset({"Meta"})


def replaced_function() -> str | None:
    """Name of a function of torch, or of a method of a layer, that has been replaced; None if there is none.

    Example:
        >>> replaced_function()
        >>> original = F.linear
        >>> F.linear = lambda x, weight, bias=None: x
        >>> replaced_function()
        'torch.nn.functional.linear'
        >>> F.linear = original
    """
    return _ORIGINALS.replaced()


def replaced_kernel() -> str | None:
    """Name of an operator of PyTorch whose kernel was replaced from Python; None if there is none.

    Example:
        >>> replaced_kernel()
        >>> library = torch.library.Library("aten", "IMPL")
        >>> library.impl("relu", lambda x: x.clamp(min=0), "CPU")
        >>> replaced_kernel()
        'aten::relu'
        >>> library._destroy()
    """
    registered: set[str] = torch.library._impls
    if registered != _known["registered"]:
        _known["registered"] = set(registered)
        _known["found"] = next(filter(None, map(_replaced, sorted(registered))), None)
    found: str | None = _known["found"]
    return found


_known: dict[str, Any] = {"registered": None, "found": None}


def _replaced(entry: str) -> str | None:
    """The operator of an entry such as ``"aten/relu/CPU"`` if its kernel is not from a file of PyTorch; else None."""
    namespace, name, key = entry.split("/")
    if namespace != "aten" or key in _WITHOUT_NUMBERS:
        return None
    dumped = torch._C._dispatch_dump(f"aten::{name}")
    place = re.search(rf"^{re.escape(key)}[^:]*: registered at (.*?):\d+", dumped, re.MULTILINE)
    return None if place is None or place[1].startswith(_ROOT) else f"aten::{name}"


class _Originals:
    """The callables at the time this module was imported, and where to find their current values."""

    def __init__(self) -> None:
        self._attributes = len(vars(Tensor))
        self._foreign: str | None = None
        self._names: list[str] = []
        self._values: list[Any] = []
        self._places: list[tuple[Callable[[str], Any], str]] = []

    def add(self, where: str, owner: Any, wanted: Callable[[str], bool] = lambda name: True) -> None:
        """Include the callables of a module or a class whose names are ``wanted``."""
        for name, value in vars(owner).items():
            if not wanted(name) or not callable(value) or isinstance(value, type):
                continue
            if not _is_torchs(value):
                self._foreign = self._foreign or f"{where}.{name}"
            self._names.append(f"{where}.{name}")
            self._values.append(value)
            self._places.append((vars(owner).get, name))

    def replaced(self) -> str | None:
        """Name of a callable that has changed since, or that was not PyTorch's in the first place; None if none."""
        if len(vars(Tensor)) != self._attributes:
            shadows = [
                name
                for name, value in vars(Tensor).items()
                if name in _INHERITED and f"torch.Tensor.{name}" not in self._names and not _is_substitute(value)
            ]
            if shadows:
                return f"torch.Tensor.{shadows[0]}"
        now = [get(name) for get, name in self._places]
        if self._foreign is None and now == self._values:
            return None
        pairs = zip(self._names, now, self._values, strict=True)
        replaced = (name for name, one, before in pairs if one is not before and not _is_substitute(one))
        return next(replaced, self._foreign)


def _is_torchs(value: Any) -> bool:
    if isinstance(value, FunctionType):
        return value.__code__.co_filename.startswith((_ROOT, "<"))
    return isinstance(value, BuiltinFunctionType) or module_of(type(value)).startswith(("torch", "builtins", "typing"))


def _is_substitute(value: Any) -> bool:
    """Whether ``value`` is one of our temporary replacements: passes may be nested, and run in several threads."""
    return getattr(value, "__module__", None) == Substitutes.__module__


def _named_by_functions() -> set[str]:
    """Names that the functions of ``torch.nn.functional`` look up."""
    functions = [value for value in vars(F).values() if isinstance(value, FunctionType)]
    return {name for function in functions for name in function.__code__.co_names}


_ORIGINALS = _Originals()
_INHERITED = frozenset(vars(torch._C.TensorBase)) - vars(Tensor).keys() - _SHOWING
_ORIGINALS.add("torch.nn.functional", F)
_ORIGINALS.add("torch", torch, _named_by_functions().__contains__)
_ORIGINALS.add("torch._C._nn", torch._C._nn)
_ORIGINALS.add("torch.Tensor", torch.Tensor, lambda name: name not in _SHOWING)
for _layer in filter(lambda value: isinstance(value, type) and issubclass(value, nn.Module), vars(nn).values()):
    if inspect.getmodule(_layer) in _WITH_PARAMETERS:
        _ORIGINALS.add(f"torch.nn.{_layer.__name__}", _layer, lambda name: "forward" in name)
