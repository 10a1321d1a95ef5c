"""The mechanisms of a configuration, built once into a ``ReleasePlan``; needs neither data nor torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dpmodel.config.faults import locating_errors
from dpmodel.planning.release import ReleasePlan
from mechanisms.factory import ClipMechanismsFactory, NoiseMechanismsFactory
from mechanisms.noise import NoNoise
from mechanisms.sampling import SAMPLERS
from mechanisms.units import ClippedUnit

if TYPE_CHECKING:
    from dpmodel.config.schema import Config
    from monitors.ledger import Ledger


def release_plan(
    config: Config, num_examples: int, noise_multiplier: float, before: Ledger | None = None
) -> ReleasePlan:
    """What each step of a configuration releases at a given noise multiplier.

    Args:
        config: The configuration; its own noise multiplier and target epsilon are not used.
        num_examples: Training examples.
        noise_multiplier: Initial noise multiplier, positive; not used if the configuration has no noise.
        before: Releases before the training, whose partitions its steps do not share.

    Raises:
        ConfigError: An argument of a mechanism is wrong; with file and line.
    """
    privacy, batch_size = config.privacy, config.training.batch_size
    with locating_errors(config, "privacy.clip"):
        clip = ClipMechanismsFactory.create(privacy.clip.name, **privacy.clip.options)
    with locating_errors(config, "privacy.norm_bound"):
        clip.start(privacy.norm_bound)
    with locating_errors(config, "privacy.noise"):
        noise = (
            NoNoise()
            if privacy.noise is None
            else NoiseMechanismsFactory.create(
                privacy.noise.name, initial_noise_multiplier=noise_multiplier, **privacy.noise.options
            )
        )
    with locating_errors(config, "privacy.micro_batches"):
        unit = ClippedUnit.of(batch_size, privacy.micro_batches)
    with locating_errors(config, "training.batch_size"):
        first = 0 if before is None else before.next_partition
        sampler = SAMPLERS.create(privacy.sampling, num_examples, batch_size, privacy.sampling_seed, first)
    if privacy.num_examples_public is not None:
        with locating_errors(config, "privacy.num_examples_public"):
            sampler.rely_on(privacy.num_examples_public)
    with locating_errors(config, "privacy.noise"):
        return ReleasePlan(noise, clip, unit, sampler)


def with_noise_multiplier(config: Config, noise_multiplier: float) -> Config:
    """The configuration with that noise multiplier instead of a target epsilon."""
    privacy = config.privacy.model_copy(update={"noise_multiplier": noise_multiplier, "target_epsilon": None})
    return config.model_copy(update={"privacy": privacy})
