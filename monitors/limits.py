"""The privacy limits of a monitor: (epsilon, delta) pairs that the ledger must stay within."""

from __future__ import annotations

from dataclasses import dataclass

from monitors import checks


@dataclass(frozen=True)
class Limit:
    """Epsilon at ``delta`` must not exceed ``epsilon``; equivalently, delta at ``epsilon`` must not exceed ``delta``.

    Args:
        epsilon: Positive.
        delta: Strictly between 0 and 1.
        in_words: The limit as the user stated it.
    """

    epsilon: float
    delta: float
    in_words: str


def limits_of(
    max_eps: float | None, target_delta: float, max_delta: float | None, target_eps: float | None
) -> tuple[Limit, ...]:
    """The limits stated by MindArmour's four arguments.

    Args:
        max_eps: Largest epsilon at ``target_delta``.
        target_delta: Strictly between 0 and 1.
        max_delta: Largest delta at ``target_eps``; needs ``target_eps``.
        target_eps: Positive.

    Raises:
        ValueError: A value is out of range, or ``max_delta`` is given without ``target_eps``.

    Example:
        >>> limits_of(3.0, 1e-5, None, None)[0].in_words
        'max_eps=3 at delta 1e-05'
    """
    checks.open_unit(target_delta=target_delta)
    found = []
    if max_eps is not None:
        checks.positive(max_eps=max_eps)
        found.append(Limit(max_eps, target_delta, f"max_eps={max_eps:g} at delta {target_delta:g}"))
    if target_eps is not None:
        checks.positive(target_eps=target_eps)
    if max_delta is not None:
        checks.open_unit(max_delta=max_delta)
        if target_eps is None:
            raise ValueError(f"max_delta={max_delta:g} needs target_eps, the epsilon at which it limits delta")
        found.append(Limit(target_eps, max_delta, f"max_delta={max_delta:g} at epsilon {target_eps:g}"))
    return tuple(found)
