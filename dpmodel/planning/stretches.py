"""Long trainings in few rows: stretches of steps that are charged as the most expensive of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mechanisms.adaptive_clipping import QuantileClip
from mechanisms.clipping import ClipMechanism
from mechanisms.noise import ScheduledGaussian
from mechanisms.sampling import PoissonSampler, ShuffleSampler
from monitors.schedules import MOST_SEPARATE, is_monotone, stretches

if TYPE_CHECKING:
    from dpmodel.planning.release import ReleasePlan
    from mechanisms.noise import NoiseMechanism

#: Implementations of ``ClipMechanism.event`` that give the same event at every step.
_SAME_EVENT = (ClipMechanism.event, QuantileClip.event)


def plan_stretches(plan: ReleasePlan, steps: int) -> Iterator[tuple[int, int]]:
    """The most expensive step and the number of steps of each stretch, over the first ``steps`` steps of ``plan``.

    Mechanisms whose events are not known to follow a monotone schedule have one stretch for each step.
    """
    first, last = plan.first_step, plan.first_step + steps
    known = is_steady(plan.noise) and type(plan.clip).event in _SAME_EVENT
    if steps <= MOST_SEPARATE or not known or type(plan.sampler) not in (PoissonSampler, ShuffleSampler):
        yield from ((step, 1) for step in range(first, last))
        return
    schedule = plan.noise.noise_multiplier
    if type(plan.sampler) is PoissonSampler:
        yield from stretches(schedule, first, last)
        return
    for begin in range(first, last, plan.sampler.steps_per_epoch):
        # only the most expensive step of a shuffled epoch counts
        end = min(begin + plan.sampler.steps_per_epoch, last) - 1
        yield min(begin, end, key=schedule), end - begin + 1


def is_steady(noise: NoiseMechanism) -> bool:
    """Whether the events of ``noise`` are known to follow a monotone schedule."""
    if not isinstance(noise, ScheduledGaussian):
        return False
    # looked up on the object, which may have a method of its own
    unchanged = all(
        getattr(getattr(noise, name), "__func__", None) is getattr(ScheduledGaussian, name)
        for name in ("event", "noise_multiplier")
    )
    return unchanged and is_monotone(noise.schedule)
