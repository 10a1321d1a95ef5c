"""What each step of a configuration releases; needs neither data nor torch."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from dpmodel.config.faults import locating_errors
from dpmodel.planning.release import ReleasePlan
from mechanisms.factory import ClipMechanismsFactory, NoiseMechanismsFactory
from mechanisms.noise import NoiseMechanism, NoNoise
from mechanisms.sampling import SAMPLERS, Sampler
from mechanisms.units import ClippedUnit
from monitors.errors import ConfigError

if TYPE_CHECKING:
    from dpmodel.config.privacy import MechanismSection
    from dpmodel.config.schema import Config
    from mechanisms.clipping import ClipMechanism
    from monitors.registry import Registry

#: Arguments of mechanisms that other settings give, or that are left to their defaults.
_FROM_ELSEWHERE = ("initial_noise_multiplier", "norm_bound", "seed")


def release_plan(config: Config, num_examples: int) -> ReleasePlan:
    """What each step of a configuration with a stated noise multiplier releases."""
    clip = make_clip(config)
    with locating_errors(config, "privacy.norm_bound"):
        clip.start(config.privacy.norm_bound)
    return ReleasePlan(make_noise(config), clip, make_unit(config), make_sampler(config, num_examples))


def make_noise(config: Config) -> NoiseMechanism:
    """The noise mechanism of a configuration whose noise multiplier is stated."""
    noise, multiplier = config.privacy.noise, config.privacy.noise_multiplier
    if noise is None:
        return NoNoise()
    if multiplier is None:
        raise ConfigError(
            f"{config.where('privacy')}: privacy.noise_multiplier is not known yet; plan_training solves for it"
        )
    with locating_errors(config, "privacy.noise"):
        _require_arguments(NoiseMechanismsFactory.registry, noise)
        return NoiseMechanismsFactory.create(noise.name, initial_noise_multiplier=multiplier, **noise.options)


def make_clip(config: Config) -> ClipMechanism:
    """The clip mechanism of a configuration, without a bound yet."""
    clip = config.privacy.clip
    with locating_errors(config, "privacy.clip"):
        _require_arguments(ClipMechanismsFactory.registry, clip)
        return ClipMechanismsFactory.create(clip.name, **clip.options)


def _require_arguments(registry: Registry[Any], mechanism: MechanismSection) -> None:
    """Name the arguments that are missing; the factories themselves name those that have no meaning."""
    given = {*mechanism.options, *_FROM_ELSEWHERE}
    parameters = inspect.signature(registry.get(mechanism.name)).parameters.values()
    named = [item for item in parameters if item.kind in (item.POSITIONAL_OR_KEYWORD, item.KEYWORD_ONLY)]
    missing = [item.name for item in named if item.default is item.empty and item.name not in given]
    if missing:
        raise ValueError(f"{registry.kind} {mechanism.name!r} needs {', '.join(missing)}; add it beside its name")


def make_unit(config: Config) -> ClippedUnit:
    """The clipped unit of a configuration."""
    with locating_errors(config, "privacy.micro_batches"):
        return ClippedUnit.of(config.training.batch_size, config.privacy.micro_batches)


def make_sampler(config: Config, num_examples: int) -> Sampler:
    """The sampler of a configuration over ``num_examples`` examples."""
    with locating_errors(config, "training.batch_size"):
        sampler: Sampler = SAMPLERS.create(
            config.privacy.sampling, num_examples, config.training.batch_size, config.privacy.sampling_seed
        )
        return sampler


def with_noise_multiplier(config: Config, noise_multiplier: float) -> Config:
    """The configuration with that noise multiplier in place of a target epsilon."""
    privacy = config.privacy.model_copy(update={"noise_multiplier": noise_multiplier, "target_epsilon": None})
    return config.model_copy(update={"privacy": privacy})
