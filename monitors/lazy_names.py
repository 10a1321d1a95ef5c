"""Public names that load on first use, so that importing a package costs nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def loader_of(package: str, homes: Mapping[str, str], namespace: dict[str, Any]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package whose names live in other modules.

    Args:
        package: Its name, for errors.
        homes: Public name to the module that defines it.
        namespace: The package's ``globals()``, where a name is kept once it is loaded.

    Example:
        >>> found = {}
        >>> loader_of("mine", {"sqrt": "math"}, found)("sqrt")(9.0), list(found)
        (3.0, ['sqrt'])
    """

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(homes[name]), name)
        namespace[name] = value
        return value

    return load
