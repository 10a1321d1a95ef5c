"""Imports a user's network, given as ``package.module:Class``."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from monitors import checks


def import_network(spec: str) -> Callable[..., Any]:
    """The class or function that ``spec`` names; the current folder is searched after the installed packages.

    Args:
        spec: ``"package.module:Class"``.

    Raises:
        ValueError: ``spec`` is malformed, the module is not found or fails to import, or it has no such attribute.

    Example:
        >>> import_network("torch.nn:Linear")
        <class 'torch.nn.modules.linear.Linear'>
        >>> import_network("torch.nn:Liner")
        Traceback (most recent call last):
            ...
        ValueError: module 'torch.nn' has no attribute 'Liner'; did you mean 'Linear'?
    """
    module_name, colon, attribute = spec.partition(":") if isinstance(spec, str) else ("", "", "")
    if not (module_name and colon and attribute):
        raise ValueError(f"module must have the form 'package.module:Class', got {spec!r}")
    found: Any = _import(module_name, spec)
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [name for name in dir(found) if not name.startswith("_")]
            owner = f"module {module_name!r}" if found is sys.modules.get(module_name) else f"{found!r}"
            raise ValueError(f"{owner} has no attribute {part!r}{checks.nearest_hint(part, public)}")
        found = getattr(found, part)
    if not callable(found) or isinstance(found, nn.Module):
        raise ValueError(f"module {spec!r} is {type(found).__name__}, not a class or function that builds a network")
    if isinstance(found, type) and not issubclass(found, nn.Module):
        raise ValueError(f"module {spec!r} is the class {found.__name__}, which is not a torch.nn.Module")
    return found  # type: ignore[no-any-return]


def _import(module_name: str, spec: str) -> Any:
    # The path of a console script lacks the current folder, where the user's file usually is.
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if module_name == missing or module_name.startswith(missing + "."):
            raise ValueError(
                f"module {spec!r}: there is no module {missing!r}. Run the command in the folder of "
                f"{module_name.split('.')[0]}.py (now: {here}), or install its package."
            ) from error
        raise ValueError(f"module {spec!r}: importing {module_name!r} failed: it needs {missing!r}") from error
    except Exception as error:
        raise ValueError(
            f"module {spec!r}: importing {module_name!r} failed: {type(error).__name__}: {error}"
        ) from error
