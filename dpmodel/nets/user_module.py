"""Imports a user's network, given as ``package.module:Class``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType, MethodType, ModuleType
from typing import Any

from torch import nn

from dpmodel.config.user_code import import_named, is_own
from monitors import checks

#: Packages with functions and classes that run what their arguments say, and the part of each that has the networks.
_NETWORKS_OF = {"torch": "torch.nn"}

#: Packages that are never the user's own project, wherever they are installed.
_NOT_OWN = ("dpmodel", "mechanisms", "monitors", *_NETWORKS_OF)

_REMEDY = "Name a subclass of torch.nn.Module, or a function of your own module that calls it and returns the network"


def import_network(spec: str) -> Callable[..., Any]:
    """The class or function that ``spec`` names; the current folder is searched after the installed packages.

    Guarantee: it is not called before it is known to build a network. Accepted are subclasses of ``torch.nn.Module``,
    functions of the user's own project, functions of an installed package whose return annotation is a network class of
    that package (``torchvision.models:resnet18``), and a ``functools.partial`` of one of them.

    Args:
        spec: ``"package.module:Class"``.

    Raises:
        ValueError: ``spec`` is malformed, names the standard library, the module is not found or fails to import, or it
            has no such attribute, or one that does not build a network.

    Example:
        >>> import_network("torch.nn:Linear")
        <class 'torch.nn.modules.linear.Linear'>
        >>> import_network("torch.nn:Liner")
        Traceback (most recent call last):
            ...
        ValueError: module 'torch.nn' has no attribute 'Liner'; did you mean 'Linear'?
        >>> import_network("os:system")
        Traceback (most recent call last):
            ...
        ValueError: module 'os:system': 'os' belongs to Python's standard library and is not imported; ...
    """
    module_name, _, attribute = spec.partition(":") if isinstance(spec, str) else ("", "", "")
    if not (module_name and all(part.isidentifier() and part[:2] != "__" for part in attribute.split("."))):
        raise ValueError(f"module must have the form 'package.module:Class', got {spec!r}")
    owner = f"module {spec!r}"
    if _has_no_networks(module_name):
        part = _NETWORKS_OF[_top(module_name)]
        raise ValueError(f"{owner}: of {_top(module_name)}, only {part} has networks; name one of {part}. {_REMEDY}")
    found: Any = import_named(module_name, owner)
    for name in attribute.split("."):
        found = _attribute(found, name, owner)
    if isinstance(found, type) and not issubclass(found, nn.Module):
        raise ValueError(f"{owner} is the class {found.__name__}, which is not a torch.nn.Module")
    if not callable(found) or isinstance(found, nn.Module):
        raise ValueError(f"{owner} is {type(found).__name__}, not a class or function that builds a network")
    if not _builds_network(found):
        raise ValueError(f"{owner} was not called: it is not known to build a network. {_REMEDY}")
    return found  # type: ignore[no-any-return]


def _attribute(holder: Any, name: str, owner: str) -> Any:
    if not isinstance(holder, ModuleType | type):
        raise ValueError(f"{owner}: {type(holder).__name__} {holder!r} has no networks. {_REMEDY}")
    if not hasattr(holder, name):
        public = [known for known in dir(holder) if not known.startswith("_")]
        place = f"module {holder.__name__!r}" if isinstance(holder, ModuleType) else f"{holder!r}"
        raise ValueError(f"{place} has no attribute {name!r}{checks.nearest_hint(name, public)}")
    found = getattr(holder, name)
    if isinstance(found, ModuleType):
        raise ValueError(f"{owner}: {name!r} is a module; name it before the colon: '{found.__name__}:...'")
    return found


def _builds_network(found: Any) -> bool:
    """Whether calling ``found`` runs the constructor of a network, or a function that was written to build one."""
    while isinstance(found, functools.partial):
        found = found.func
    if isinstance(found, type):
        return issubclass(found, nn.Module) and not _has_no_networks(found.__module__)
    functions = _functions(found)
    if any(_home(each) not in _NOT_OWN and is_own(each.__globals__.get("__file__")) for each in functions):
        return True
    returned = _returned_class(functions[-1]) if functions else None
    return returned is not None and _home(functions[-1]) == _top(returned.__module__) not in _NETWORKS_OF


def _functions(found: Any) -> list[FunctionType]:
    """A function and those that it decorates; empty for anything else, such as an object with ``__call__``."""
    chain: list[Any] = []
    found = found.__func__ if isinstance(found, MethodType) else found
    while isinstance(found, FunctionType | functools._lru_cache_wrapper) and found not in chain:
        chain.append(found)
        found = vars(found).get("__wrapped__")
    return [each for each in chain if isinstance(each, FunctionType)]


def _home(function: FunctionType) -> str:
    # `__module__` is copied by functools.wraps; the globals are those of the file that the code is in.
    return _top(str(function.__globals__.get("__name__")))


def _returned_class(function: FunctionType) -> type[nn.Module] | None:
    """The network class in the return annotation; None if there is none, or it is ``torch.nn.Module`` itself."""
    try:
        stated: Any = function.__annotations__.get("return")
    except Exception:  # Python 3.14 evaluates annotations here, and names for types only are missing
        return None
    if isinstance(stated, str):
        first, *inner = stated.strip("'\"").split(".")
        stated = function.__globals__.get(first)
        for name in inner:
            stated = getattr(stated, name, None)
    proper = isinstance(stated, type) and issubclass(stated, nn.Module) and stated is not nn.Module
    return stated if proper else None


def _has_no_networks(module_name: str) -> bool:
    part = _NETWORKS_OF.get(_top(module_name))
    return part is not None and module_name != part and not module_name.startswith(f"{part}.")


def _top(module_name: str) -> str:
    return module_name.partition(".")[0]
