"""Long trainings in few rows: stretches of steps that are charged as the most expensive of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mechanisms.adaptive_clipping import QuantileClip
from mechanisms.clipping import ClipMechanism
from mechanisms.correlated.samplers import ArrivalOrderSampler, CyclicPoissonSampler, FixedOrderSampler
from mechanisms.noise import ScheduledGaussian
from mechanisms.sampling import PoissonSampler, Sampler, ShuffleSampler
from monitors.events import DisjointEvent, GaussianEvent
from monitors.schedules import MOST_SEPARATE, is_monotone, stretches

if TYPE_CHECKING:
    from mechanisms.noise import NoiseMechanism

_KNOWN_SAMPLERS = (PoissonSampler, ShuffleSampler, CyclicPoissonSampler, FixedOrderSampler, ArrivalOrderSampler)

#: Implementations of ``ClipMechanism.event`` that give the same event at every step.
_SAME_EVENT = (ClipMechanism.event, QuantileClip.event)


def plan_stretches(
    noise: NoiseMechanism, clip: ClipMechanism, sampler: Sampler, first: int, last: int
) -> Iterator[tuple[int, int]]:
    """The most expensive step and the number of steps of each stretch of the steps from ``first`` to before ``last``.

    Mechanisms whose events are not known to follow a monotone schedule have one stretch for each step.
    """
    known = is_steady(noise) and type(clip).event in _SAME_EVENT
    if last - first <= MOST_SEPARATE or not known or type(sampler) not in _KNOWN_SAMPLERS:
        yield from ((step, 1) for step in range(first, last))
        return
    schedule = noise.noise_multiplier
    if not isinstance(sampler.amplify(0, GaussianEvent(1.0)), DisjointEvent):
        yield from stretches(schedule, first, last)
        return
    for begin in range(first, last, sampler.period):
        # only the most expensive step of a round or an epoch counts
        end = min(begin + sampler.period, last) - 1
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
