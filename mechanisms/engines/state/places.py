"""Records of single places that hold a value: slots, cells, functions, global names."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator
from operator import is_
from typing import Any

from mechanisms.engines.state.holders import MISSING, Holder, equal_atoms

#: Errors of reading an empty place.
EMPTY = (AttributeError, LookupError, ValueError)


class Place(Holder):
    """A place that functions read, write and empty: a cell of a closure, a slot, a global name.

    Args:
        name: Name of the place.
        read: Returns its value; raises ``AttributeError``, ``KeyError``, ``LookupError`` or ``ValueError`` if it is
            empty.
        write: Sets its value.
        empty: Empties it; None if that is not possible.
    """

    __slots__ = ("_empty", "_read", "_value", "_write")

    def __init__(
        self,
        name: str,
        read: Callable[[], Any],
        write: Callable[[Any], object],
        empty: Callable[[], object] | None = None,
    ) -> None:
        super().__init__(name)
        self._read, self._write, self._empty = read, write, empty
        self._value = self.value

    @property
    def value(self) -> Any:
        """The current value, or ``MISSING``."""
        try:
            return self._read()
        except EMPTY:
            return MISSING

    def is_current(self) -> bool:
        try:
            now = self._read()
        except EMPTY:
            now = MISSING
        return now is self._value or equal_atoms(now, self._value)

    def put_back(self) -> list[str]:
        if self._value is not MISSING:
            self._write(self._value)
        elif self._empty is not None and self.value is not MISSING:
            self._empty()
        return [self.name]


class Slot(Holder):
    """An attribute of an object that is read by name: a slot, or the content of a cell of a closure.

    Args:
        name: Name of the place.
        owner: The object.
        key: Name of its attribute.

    Example:
        >>> cell = (lambda x: lambda: x)(1).__closure__[0]
        >>> place = Slot("x", cell, "cell_contents")
        >>> cell.cell_contents = 2
        >>> place.put_back(), cell.cell_contents
        (['x'], 1)
    """

    __slots__ = ("_key", "_owner", "_value")

    def __init__(self, name: str, owner: Any, key: str) -> None:
        super().__init__(name)
        self._owner, self._key = owner, key
        self._value = self.value

    @property
    def value(self) -> Any:
        """The current value, or ``MISSING``."""
        try:
            return getattr(self._owner, self._key)
        except EMPTY:
            return MISSING

    def is_current(self) -> bool:
        try:
            now = getattr(self._owner, self._key)
        except EMPTY:
            now = MISSING
        return now is self._value or equal_atoms(now, self._value)

    def put_back(self) -> list[str]:
        if self._value is not MISSING:
            setattr(self._owner, self._key, self._value)
        elif self.value is not MISSING:
            delattr(self._owner, self._key)
        return [self.name]


class Function(Holder):
    """The code and the default arguments of a function."""

    __slots__ = ("_code", "_defaults", "_function", "_keywords")

    def __init__(self, name: str, function: types.FunctionType) -> None:
        super().__init__(name)
        self._function, self._code = function, function.__code__
        self._defaults, self._keywords = function.__defaults__, function.__kwdefaults__

    def is_current(self) -> bool:
        now = self._function
        return (
            now.__defaults__ is self._defaults
            and now.__kwdefaults__ is self._keywords
            and (now.__code__ is self._code or now.__code__ == self._code)
        )

    def put_back(self) -> list[str]:
        before = {"__defaults__": self._defaults, "__kwdefaults__": self._keywords, "__code__": self._code}
        changed = [key for key, value in before.items() if getattr(self._function, key) is not value]
        for key in changed:
            setattr(self._function, key, before[key])
        return [f"{self.name}.{key}" for key in changed]


class GlobalNames(Holder):
    """The global names of one module that functions read or assign: one test covers the names of all its functions.

    Args:
        names: The namespace of the module.
    """

    __slots__ = ("_known", "_names")

    def __init__(self, names: dict[str, Any]) -> None:
        super().__init__("")
        self._names, self._known = names, dict[str, Any]()

    def add(self, names: Iterable[str]) -> Iterator[tuple[str, Any]]:
        """Include names, which may be undefined; yields the values of those that are new and defined."""
        for name in names:
            if name not in self._known:
                value = self._known[name] = self._names.get(name, MISSING)
                if value is not MISSING:
                    yield name, value

    def is_current(self) -> bool:
        get = self._names.get
        now = [get(name, MISSING) for name in self._known]
        return all(map(is_, now, self._known.values())) or not self._changed()

    def put_back(self) -> list[str]:
        changed = self._changed()
        for name in changed:
            if self._known[name] is MISSING:
                del self._names[name]
            else:
                self._names[name] = self._known[name]
        return changed

    def _changed(self) -> list[str]:
        pairs = ((name, self._names.get(name, MISSING), before) for name, before in self._known.items())
        return [name for name, now, before in pairs if now is not before and not equal_atoms(now, before)]
