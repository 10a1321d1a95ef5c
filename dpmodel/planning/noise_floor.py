"""Schedules whose noise falls to nothing: refused, or passed by while a noise multiplier is searched for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dpmodel.planning.from_config import release_plan, with_noise_multiplier
from monitors.calibration import SMALLEST_MULTIPLIER
from monitors.errors import ConfigError
from monitors.events import NonPrivateEvent
from monitors.ledger import Ledger

if TYPE_CHECKING:
    from dpmodel.config.schema import Config
    from dpmodel.planning.release import ReleasePlan

#: A first multiplier above what any training uses; a schedule that falls to nothing even from here is refused.
HIGHEST_FIRST = 100.0


def ledger_to_search(config: Config, num_examples: int) -> Ledger:
    """The planned ledger while a noise multiplier is searched for.

    Where the schedule falls to nothing it stands as not private, which sends the search on to higher multipliers: the
    accounting of what it is would take minutes. ``require_noise_left`` refuses such a schedule.
    """
    release = release_plan(config, num_examples)
    steps = config.training.epochs * release.sampler.steps_per_epoch
    return no_noise() if falls_away(release, steps) else release.ledger(steps)


def require_noise_left(config: Config, num_examples: int) -> None:
    """Refuse a schedule that falls to nothing: its epsilon would be astronomic, after minutes of accounting."""
    solved = config.privacy.target_epsilon is not None
    release = release_plan(with_noise_multiplier(config, HIGHEST_FIRST) if solved else config, num_examples)
    steps = config.training.epochs * release.sampler.steps_per_epoch
    if not falls_away(release, steps):
        return
    noise = release.noise
    lowest = min(range(steps), key=noise.noise_multiplier)
    first, rate = noise.noise_multiplier(0), noise.noise_decay_rate
    start = f"even if it begins at {first:g}" if solved else f"beginning at {first:g}"
    remedy = "let it fall less" if rate is None else f"lower the decay rate, {rate:g} (privacy.noise.noise_decay_rate)"
    raise ConfigError(
        f"{config.where('privacy.noise.noise_decay_rate')}: privacy.noise: the noise multiplier falls to "
        f"{noise.noise_multiplier(lowest):.2g} by step {lowest + 1:,} of {steps:,}, {start}; below "
        f"{SMALLEST_MULTIPLIER:g} a step is as good as not private; {remedy}, or train fewer steps"
    )


def falls_away(release: ReleasePlan, steps: int) -> bool:
    """Whether the multiplier sinks below the smallest that a search would give; low noise that stays is no fall."""
    noise = release.noise
    if not noise.private:
        return False
    bound = min(SMALLEST_MULTIPLIER, noise.noise_multiplier(0))
    # Nearly every schedule that falls is at its lowest in the end: it is found at the first look.
    return any(noise.noise_multiplier(step) < bound for step in reversed(range(steps)))


def no_noise() -> Ledger:
    """What stands for a schedule that falls to nothing while searching: its own figure would take minutes."""
    return Ledger().record(NonPrivateEvent())
