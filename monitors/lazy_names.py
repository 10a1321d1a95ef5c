"""Public names that load on first use, so that importing a package costs nothing."""

from __future__ import annotations

import ast
import sys
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


def names_for_type_checkers(package: str) -> dict[str, str]:
    """The names that the ``if TYPE_CHECKING:`` blocks of a package import, so that they are written only once.

    Args:
        package: A package that is being imported.

    Returns:
        Name to the module that defines it.
    """
    spec = sys.modules[package].__spec__
    assert spec is not None
    source: str = getattr(spec.loader, "get_source")(package)  # noqa: B009 - not every loader has it, those of files do
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            imports = [statement for statement in node.body if isinstance(statement, ast.ImportFrom)]
            found.update({alias.name: str(statement.module) for statement in imports for alias in statement.names})
    return found
