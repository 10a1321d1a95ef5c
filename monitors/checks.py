"""Argument checks by keyword: the message contains the argument's name and value.

Example:
    >>> positive(norm_bound=-1.0)
    Traceback (most recent call last):
        ...
    ValueError: norm_bound must be a positive finite number, got -1.0
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

#: Largest integer of 64 bits: no count is larger, and arrays hold none that is.
LARGEST = 2**63 - 1

#: Most characters of a value in a message.
_SHOWN = 200


def _is_real(value: Any) -> bool:
    # Test the plain types first, for speed: a schedule of a million steps is checked step by step.
    return type(value) in (float, int) or (isinstance(value, Real) and not isinstance(value, bool))


def _is_whole(value: Any) -> bool:
    return type(value) is int or (isinstance(value, Integral) and not isinstance(value, bool))


def _require(condition: bool, name: str, what: str, value: Any, hint: str = "") -> None:
    if not condition:
        raise ValueError(f"{name} must be {what}, got {shown(value)}{hint}")


def shown(value: Any) -> str:
    """The ``repr`` of ``value`` for a message, shortened if it is long.

    Example:
        >>> shown("x" * 300) == "'" + "x" * 99 + "..."
        True
    """
    try:
        return shortened(repr(value))
    except (ValueError, RecursionError):  # an integer of more digits than Python converts, or a deep nest
        return f"a {type(value).__name__} too long to show"


def shortened(text: str) -> str:
    """``text`` of at most 200 characters; a longer one is cut after 100."""
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]}..."


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer above the largest float
        return False


def numbers(**named: Any) -> None:
    """Require each value to be a number; infinite ones and NaN are numbers."""
    for name, value in named.items():
        _require(_is_real(value), name, "a number", value)


def finite(**named: Any) -> None:
    """Require each value to be a finite number."""
    for name, value in named.items():
        _require(_is_real(value) and _is_finite(value), name, "a finite number", value)


def positive(**named: Any) -> None:
    """Require each value to be a finite number above 0."""
    for name, value in named.items():
        ok = _is_real(value) and _is_finite(value) and value > 0
        _require(ok, name, "a positive finite number", value)


def non_negative(**named: Any) -> None:
    """Require each value to be a finite number of at least 0."""
    for name, value in named.items():
        ok = _is_real(value) and _is_finite(value) and value >= 0
        _require(ok, name, "a finite number of at least 0", value)


def open_unit(**named: Any) -> None:
    """Require each value to lie strictly between 0 and 1."""
    for name, value in named.items():
        ok = _is_real(value) and 0 < value < 1
        _require(ok, name, "strictly between 0 and 1", value, _percent_hint(value))


def unit_interval(**named: Any) -> None:
    """Require each value to lie in [0, 1]."""
    for name, value in named.items():
        ok = _is_real(value) and 0 <= value <= 1
        _require(ok, name, "in [0, 1]", value, _percent_hint(value))


def sampling_rate(**named: Any) -> None:
    """Require each value to lie in (0, 1]."""
    for name, value in named.items():
        ok = _is_real(value) and 0 < value <= 1
        _require(ok, name, "above 0 and at most 1", value)


def positive_int(**named: Any) -> None:
    """Require each value to be an integer of at least 1, and below 2**63."""
    for name, value in named.items():
        ok = _is_whole(value) and int(value) >= 1
        _require(ok, name, "an integer of at least 1", value)
        _require(int(value) <= LARGEST, name, "an integer below 2**63", value)


def non_negative_int(**named: Any) -> None:
    """Require each value to be an integer of at least 0."""
    for name, value in named.items():
        ok = _is_whole(value) and int(value) >= 0
        _require(ok, name, "an integer of at least 0", value)


def one_of(choices: Iterable[Any], **named: Any) -> None:
    """Require each value to be one of ``choices``; the error suggests the nearest one.

    Example:
        >>> one_of(("Linear", "Geometric"), decay_policy="linear")
        Traceback (most recent call last):
            ...
        ValueError: decay_policy must be one of 'Linear', 'Geometric', got 'linear'; did you mean 'Linear'?
    """
    allowed = list(choices)
    for name, value in named.items():
        if value not in allowed:
            listing = ", ".join(repr(choice) for choice in allowed)
            _require(False, name, f"one of {listing}", value, nearest_hint(value, allowed))


def nearest_hint(value: Any, choices: Iterable[Any]) -> str:
    """``"; did you mean 'X'?"`` for the choice nearest to ``value``, or an empty string if none is near."""
    import difflib

    if len(str(value)) > _SHOWN:
        return ""
    by_lower = {str(choice).lower(): str(choice) for choice in choices}
    close = difflib.get_close_matches(str(value).lower(), list(by_lower), n=1, cutoff=0.5)
    return f"; did you mean {by_lower[close[0]]!r}?" if close else ""


def _percent_hint(value: Any) -> str:
    if _is_real(value) and 1 < value <= 100:
        return f" (did you mean {value / 100:g}?)"
    return ""
