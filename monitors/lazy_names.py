"""Public names of a package that load on first use, so that importing the package is cheap.

The stub file ``__init__.pyi`` of the package lists the names, for type checkers and for the package itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from typing import Any


def lazy_names(namespace: dict[str, Any]) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of a package, from its stub file.

    Each public name is one line of the stub: ``from module import name as name``.

    Args:
        namespace: The package's ``globals()``, in which a name is stored once it is loaded.

    Example:
        >>> import monitors
        >>> load, _, names = lazy_names(vars(monitors))
        >>> load("Ledger").__module__, "Ledger" in names
        ('monitors.ledger', True)
    """
    stub = os.path.join(namespace["__path__"][0], "__init__.pyi")
    lines = map(str.split, namespace["__loader__"].get_data(stub).decode("utf-8").splitlines())
    homes = {words[3]: words[1] for words in lines if words[:1] == ["from"]}

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {namespace['__name__']!r} has no attribute {name!r}")
        value = getattr(import_module(homes[name]), name)
        namespace[name] = value
        return value

    def names() -> list[str]:
        return sorted({*namespace, *homes})

    return load, names, sorted(homes)
