"""The printed form of a mechanism: its class and its relevant settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from monitors.signatures import signature

#: Settings that are shown in a different form.
_NOT_SHOWN = ("seed", "norm_bound")


def readable(mechanism: Any, **shown: Any) -> str:
    """``Class(name=value, ...)`` for those constructor arguments that the object stores under their own names.

    Args:
        mechanism: The object; ``generator.reproducible`` says whether a seed voids its guarantee.
        **shown: Values to show first.

    Example:
        >>> from mechanisms import Fixed, Gaussian
        >>> Gaussian(initial_noise_multiplier=1.5)
        Gaussian(initial_noise_multiplier=1.5)
        >>> Gaussian(seed=3)
        Gaussian(initial_noise_multiplier=1, reproducible: no guarantee)
    """
    values = {**shown, **dict(_settings(mechanism))}
    parts = [f"{name}={_text(value)}" for name, value in values.items()]
    if getattr(getattr(mechanism, "generator", None), "reproducible", False):
        parts.append("reproducible: no guarantee")
    return f"{type(mechanism).__name__}({', '.join(parts)})"


def _settings(mechanism: Any) -> Iterator[tuple[str, Any]]:
    # A subclass may forward arguments as **kwargs; its base classes name them.
    for kind in type(mechanism).__mro__:
        if "__init__" not in vars(kind) or kind is object:
            continue
        for name in signature(kind).parameters:
            value = getattr(mechanism, name, None)
            if name not in _NOT_SHOWN and isinstance(value, (bool, int, float, str)):
                yield name, value


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else repr(value)
