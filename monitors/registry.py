"""Registries: from names to builders, with did-you-mean errors and the listings shown by docs and command line."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from monitors import checks
from monitors.errors import PrivacyWarning

T = TypeVar("T", bound=Callable[..., Any])

ENTRY_POINT_GROUP = "dpmodel.mechanisms"
_loaded_groups: set[str] = set()


def load_entry_points(group: str = ENTRY_POINT_GROUP) -> None:
    """Import every installed package with an entry point in ``group``; importing it registers its mechanisms.

    A package that fails to import causes a warning and is skipped, so that it cannot block other work.
    """
    if group in _loaded_groups:
        return
    _loaded_groups.add(group)
    from importlib.metadata import entry_points

    for entry in entry_points(group=group):
        try:
            entry.load()
        except Exception as error:
            message = f"entry point {entry.name!r} of group {group!r} ({entry.value}) could not be loaded: {error}"
            warnings.warn(message, PrivacyWarning, stacklevel=3)


class Registry(Generic[T]):
    """The names of one kind of object, and the callables that build them.

    Args:
        kind: What the names stand for, in words; used in errors (``"noise mechanism"``).
        elsewhere: Names from other libraries, each with advice on what to use here instead.

    Example:
        >>> shapes = Registry("shape")
        >>> @shapes.register("Circle")
        ... def circle(radius=1.0):
        ...     return f"circle of {radius}"
        >>> shapes.create("Circle", radius=2.0)
        'circle of 2.0'
        >>> shapes.get("Cirle")
        Traceback (most recent call last):
            ...
        ValueError: unknown shape 'Cirle'; did you mean 'Circle'? Known: Circle
    """

    def __init__(self, kind: str, elsewhere: Mapping[str, str] | None = None) -> None:
        self.kind = kind
        self.elsewhere = dict(elsewhere or {})
        self._builders: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that registers a class or function as ``name``; a name in use is refused."""
        if not isinstance(name, str) or not name:
            raise ValueError(f"the name of a {self.kind} must be a non-empty string, got {name!r}")

        def add(builder: T) -> T:
            known = self._builders.get(name)
            if known is not None and _identity(known) != _identity(builder):
                raise ValueError(
                    f"{self.kind} {name!r} is already registered by {_identity(known)}; choose a different name"
                )
            self._builders[name] = builder
            return builder

        return add

    def names(self) -> tuple[str, ...]:
        """All registered names in alphabetical order, including those of installed extensions."""
        load_entry_points()
        return tuple(sorted(self._builders))

    def get(self, name: str) -> T:
        """The builder registered as ``name``.

        Raises:
            ValueError: The name is unknown; the message lists the known names and suggests the nearest.
        """
        if name not in self._builders:
            load_entry_points()
        if name not in self._builders:
            advice = self.elsewhere.get(name.lower()) if isinstance(name, str) else None
            hint = f": {advice}." if advice else checks.nearest_hint(name, self._builders) or "."
            raise ValueError(f"unknown {self.kind} {checks.shown(name)}{hint} Known: {', '.join(self.names())}")
        return self._builders[name]

    def name_of(self, builder: Callable[..., Any]) -> str:
        """The registered name of ``builder``; its ``__name__`` if it is not registered."""
        return next((name for name, known in self._builders.items() if known is builder), builder.__name__)

    def create(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call the builder registered as ``name``."""
        return self.get(name)(*args, **kwargs)

    def __contains__(self, name: object) -> bool:
        return name in self._builders


def _identity(builder: Any) -> str:
    module = getattr(builder, "__module__", type(builder).__module__)
    return f"{module}.{getattr(builder, '__qualname__', repr(builder))}"
