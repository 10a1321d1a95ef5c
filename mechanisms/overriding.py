"""Statements of a class about one of its methods, which subclasses may override."""

from __future__ import annotations


def speaks_for(owner: object, statement: str, method: str) -> bool:
    """Whether ``owner.statement()`` is about the ``owner.method()`` in use, rather than one that was overridden since.

    Args:
        owner: An object whose class has both methods.
        statement: Name of the method that makes the statement.
        method: Name of the method that it is about.

    Example:
        >>> from mechanisms.clipping import Fixed
        >>> class Halved(Fixed):
        ...     def factors(self, norms):
        ...         return super().factors(norms) / 2
        >>> [speaks_for(each, "constants", "factors") for each in (Fixed(), Halved())]
        [True, False]
    """
    if {statement, method} & vars(owner).keys():
        return False
    stated, defined = (_definer(type(owner), name) for name in (statement, method))
    return issubclass(stated, defined) and _is_own(defined, method)


def _definer(kind: type, name: str) -> type:
    return next(each for each in kind.__mro__ if name in vars(each))


def _is_own(kind: type, name: str) -> bool:
    """Whether a method was defined in the body of its class, rather than assigned to it later."""
    method = vars(kind)[name]
    named = getattr(method, "__module__", None), getattr(method, "__qualname__", None)
    return named == (kind.__module__, f"{kind.__qualname__}.{name}") and not hasattr(method, "__wrapped__")
