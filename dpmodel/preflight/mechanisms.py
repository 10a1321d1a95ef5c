"""Trials of the clip mechanism, the noise mechanism and the sampler."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from mechanisms.clip_check import require_sound_clip
from mechanisms.noise_check import require_sound_noise
from mechanisms.sampling import Sampler
from mechanisms.sampling_check import require_sound_sampler
from monitors.events import NonPrivateEvent

if TYPE_CHECKING:
    from dpmodel.planning.release import ReleasePlan
    from mechanisms.engines.parameters import FlatLayout


def require_sound_mechanisms(
    plan: ReleasePlan, steps: range, build_sampler: Callable[..., Sampler], layout: FlatLayout
) -> tuple[str, ...]:
    """Try the clip mechanism, the noise mechanism and the sampler of a plan; their state stays as it is.

    Without privacy, only the clip mechanism is tried.

    Args:
        plan: The mechanisms of the training.
        steps: The planned steps.
        build_sampler: Builds the sampler, like a class of ``SAMPLERS``.
        layout: Where the trained parameters lie in the sum.

    Returns:
        Notes about what could not be tried.

    Raises:
        UnprotectedUpdateError: A mechanism does not do what its event states.
    """
    notes = require_sound_clip(plan.clip, layout.names, plan.unit, steps, zeroed=plan.sampler.zeroes)
    if isinstance(plan.noise.event(steps[0], plan.unit.sensitivity_factor), NonPrivateEvent):
        return notes

    examples, batch = plan.sampler.num_examples, plan.sampler.batch_size

    def fresh(num_examples: int, batch_size: int, first_partition: int) -> Sampler:
        sampler = build_sampler(num_examples, batch_size, None, first_partition)
        sampler.separate(plan.sampler.bands)
        stated = plan.sampler.num_examples_public
        if stated is not None and (num_examples, batch_size) == (examples, batch):
            sampler.rely_on(stated)
        return sampler

    like = layout.zeros(1).expand(layout.size)
    notes += require_sound_noise(plan.noise, plan.unit, steps, norm_bound=plan.clip.norm_bound, like=like)
    return notes + require_sound_sampler(fresh, examples, batch, plan.unit, len(steps))
