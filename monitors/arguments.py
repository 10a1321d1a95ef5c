"""Checks of the keyword arguments that a configuration gives to a named builder, before anything is built."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from monitors import checks
from monitors.signatures import signature


def accepted_names(builder: Callable[..., Any]) -> list[str] | None:
    """Names of the arguments that ``builder`` takes by keyword; None if it takes any or has no signature."""
    try:
        parameters = signature(builder).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return [parameter.name for parameter in parameters if parameter.kind is not parameter.POSITIONAL_ONLY]


def check_arguments(
    builder: Callable[..., Any], given: Mapping[str, Any], owner: str, provided: Iterable[str] = ()
) -> None:
    """Refuse arguments that ``builder`` does not take, and missing ones that it needs.

    Args:
        builder: Class or function that will be called with ``given``.
        given: The user's keyword arguments.
        owner: What is being built, in words; used in the message (``"optimizer 'SGD'"``).
        provided: Names that the caller fills in; the user must not give them.

    Raises:
        ValueError: Arguments are unknown or missing; the message lists all of them, with the nearest known name of
            each.

    Example:
        >>> def sgd(params, lr, momentum=0.0): ...
        >>> check_arguments(sgd, {"lr": 0.1, "momentun": 0.9}, "optimizer 'sgd'", provided=["params"])
        Traceback (most recent call last):
            ...
        ValueError: optimizer 'sgd' has no argument 'momentun'; did you mean 'momentum'? It takes: lr, momentum
    """
    known = accepted_names(builder)
    if known is None:
        return
    filled = set(provided)
    open_names = [name for name in known if name not in filled]
    unknown = [name for name in given if name not in open_names]
    if unknown:
        parts = [f"{checks.shown(name)}{checks.nearest_hint(name, open_names)}" for name in unknown]
        listing, stop = ", ".join(open_names) or "none", " It" if parts[-1].endswith("?") else "; it"
        raise ValueError(f"{owner} has no argument {', '.join(parts)}{stop} takes: {listing}")
    missing = [name for name in _required_names(builder) if name not in filled and name not in given]
    if missing:
        plural = "s" if len(missing) > 1 else ""
        raise ValueError(f"{owner} needs the argument{plural} {', '.join(map(repr, missing))}")


def _required_names(builder: Callable[..., Any]) -> list[str]:
    by_keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = signature(builder).parameters.values()
    return [item.name for item in parameters if item.kind in by_keyword and item.default is item.empty]
