"""Noise schedules that fall to nothing: refused, and skipped by a search for a noise multiplier."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dpmodel.planning.stretches import is_steady
from monitors.calibration import SMALLEST_MULTIPLIER
from monitors.events import NonPrivateEvent
from monitors.ledger import Ledger

if TYPE_CHECKING:
    from mechanisms.noise import NoiseMechanism

#: A higher initial multiplier than any training uses; a schedule that falls to nothing even from here is refused.
HIGHEST_FIRST = 100.0


def require_noise_left(noise: NoiseMechanism, steps: int) -> None:
    """Refuse a schedule that falls to nothing: its epsilon would be astronomic, after minutes of accounting.

    Args:
        noise: The noise mechanism; at ``HIGHEST_FIRST`` before its multiplier is solved for.
        steps: The planned steps.

    Raises:
        ValueError: The noise multiplier falls below the smallest that a search would give.
    """
    if not falls_away(noise, steps):
        return
    lowest = min(range(steps), key=noise.noise_multiplier)
    first, rate = noise.noise_multiplier(0), noise.noise_decay_rate
    remedy = "let it fall less" if rate is None else f"lower the decay rate, {rate:g} (noise_decay_rate)"
    raise ValueError(
        f"the noise multiplier falls to {noise.noise_multiplier(lowest):.2g} by step {lowest + 1:,} of {steps:,}, "
        f"{'even if it begins' if first == HIGHEST_FIRST else 'beginning'} at {first:g}; below "
        f"{SMALLEST_MULTIPLIER:g} a step is as good as not private; {remedy}, or train fewer steps"
    )


def falls_away(noise: NoiseMechanism, steps: int) -> bool:
    """Whether the multiplier falls below the smallest that a search would give; constant low noise does not."""
    if not noise.private:
        return False
    bound = min(SMALLEST_MULTIPLIER, noise.noise_multiplier(0))
    # A monotone schedule is lowest at an end. Nearly every other one is lowest at its last step.
    chosen = (steps - 1, 0) if is_steady(noise) else reversed(range(steps))
    return steps > 0 and any(noise.noise_multiplier(step) < bound for step in chosen)


def no_noise() -> Ledger:
    """The ledger that a search evaluates in place of that of a schedule that falls to nothing."""
    return Ledger().record(NonPrivateEvent())
