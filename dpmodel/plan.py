"""What a configured training will release and spend, before anything is trained; needs neither data nor torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dpmodel.config.faults import blame
from dpmodel.release import ReleasePlan
from mechanisms.factory import ClipMechanismsFactory, NoiseMechanismsFactory
from mechanisms.noise import NoiseMechanism, NoNoise
from mechanisms.sampling import SAMPLERS, Sampler
from mechanisms.units import ClippedUnit
from monitors import _checks
from monitors.accountant import PrivacySpent, privacy_spent
from monitors.calibration import calibrate_noise_multiplier, max_steps
from monitors.errors import ConfigError
from monitors.ledger import Ledger

if TYPE_CHECKING:
    from dpmodel.config.schema import Config
    from mechanisms.clipping import ClipMechanism
    from monitors.events import PrivacyEvent

#: Training examples of the public data sets, so that planning need not read them; checked where they are read.
KNOWN_SIZES: Mapping[str, int] = {"mnist": 60_000, "fashion_mnist": 60_000, "cifar10": 50_000}

#: Where the search for the most epochs gives up.
MOST_EPOCHS = 100_000


@dataclass(frozen=True)
class TrainingPlan:
    """A training that is about to happen, with its privacy.

    Args:
        config: The configuration; its noise multiplier is a number (a target epsilon is solved).
        release: What each step releases.
        target_epsilon: What the multiplier was solved for, else None.
    """

    config: Config
    release: ReleasePlan
    target_epsilon: float | None = None
    _rows: list[tuple[PrivacyEvent, int]] = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch."""
        return self.release.sampler.steps_per_epoch

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return self.config.training.epochs * self.steps_per_epoch

    @property
    def noise_multiplier(self) -> float:
        """Noise standard deviation over the norm bound at the first step; 0 without privacy."""
        return self.release.noise.noise_multiplier(0)

    def ledger(self, steps: int | None = None) -> Ledger:
        """The ledger after ``steps`` steps (default: all of them), notes included."""
        ledger, missing = Ledger(self.release.caveats), self.steps if steps is None else steps
        self._extend_rows(missing)
        for event, count in self._rows:
            taken = min(count, missing)
            if taken:
                ledger.record(event, taken)
            missing -= taken
        return ledger

    def privacy_spent(self, accountant: str | None = None, epochs: int | None = None) -> PrivacySpent:
        """What the training will have spent after ``epochs`` epochs (default: all of them).

        Args:
            accountant: Default: that of the configuration.
            epochs: Epochs, at least 1.
        """
        privacy = self.config.privacy
        steps = None if epochs is None else epochs * self.steps_per_epoch
        name = accountant or privacy.accountant
        return privacy_spent(self.ledger(steps), privacy.delta, name, self.release.statement)

    def _extend_rows(self, steps: int) -> None:
        # A search for the most epochs asks for many ledgers that begin alike; each step's event is made once.
        rows = self._rows
        for step in range(sum(count for _, count in rows), steps):
            event = self.release.event(step)
            if rows and rows[-1][0] == event:
                rows[-1] = (event, rows[-1][1] + 1)
            else:
                rows.append((event, 1))


def plan_training(config: Config, num_examples: int | None = None) -> TrainingPlan:
    """The plan of a configuration; a target epsilon is solved for the first noise multiplier.

    Args:
        config: The configuration.
        num_examples: Training examples; default: what the configuration implies.

    Raises:
        ConfigError: A value is out of range, settings contradict each other, or the target is out of reach.
    """
    size = expected_examples(config) if num_examples is None else num_examples
    target = config.privacy.target_epsilon
    if target is not None:
        with blame(config, "privacy.target_epsilon"):
            config = with_noise_multiplier(config, _calibrated(config, size))
    return TrainingPlan(config, release_plan(config, size), target)


def release_plan(config: Config, num_examples: int) -> ReleasePlan:
    """What each step of a configuration with a stated noise multiplier releases."""
    clip = make_clip(config)
    with blame(config, "privacy.norm_bound"):
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
    with blame(config, "privacy.noise"):
        return NoiseMechanismsFactory.create(noise.name, initial_noise_multiplier=multiplier, **noise.options)


def make_clip(config: Config) -> ClipMechanism:
    """The clip mechanism of a configuration, without a bound yet."""
    clip = config.privacy.clip
    with blame(config, "privacy.clip"):
        return ClipMechanismsFactory.create(clip.name, **clip.options)


def make_unit(config: Config) -> ClippedUnit:
    """The clipped unit of a configuration."""
    with blame(config, "privacy.micro_batches"):
        return ClippedUnit.of(config.training.batch_size, config.privacy.micro_batches)


def make_sampler(config: Config, num_examples: int) -> Sampler:
    """The sampler of a configuration over ``num_examples`` examples."""
    with blame(config, "training.batch_size"):
        sampler: Sampler = SAMPLERS.create(
            config.privacy.sampling, num_examples, config.training.batch_size, config.privacy.sampling_seed
        )
        return sampler


def expected_examples(config: Config) -> int:
    """Training examples that a configuration implies, without reading the data.

    Raises:
        ConfigError: The configuration does not say and the data set is not a public one.
    """
    data = config.data
    known = data.num_examples or data.limit or KNOWN_SIZES.get(data.name)
    if known is None:
        raise ConfigError(
            f"{config.where('data')}: the number of training examples of {data.name!r} is not known without reading "
            "the data; set data.num_examples (or --num-examples)"
        )
    return known


def most_epochs(config: Config, max_epsilon: float, num_examples: int | None = None) -> int:
    """The most epochs whose epsilon is at most ``max_epsilon``; 0 where one epoch is too many.

    Args:
        config: A configuration with a stated noise multiplier; its own number of epochs is not used.
        max_epsilon: Positive.
        num_examples: As of ``plan_training``.

    Raises:
        ConfigError: The configuration has no noise multiplier, or more than ``MOST_EPOCHS`` epochs fit.
    """
    with blame(config, "training.epochs"):
        _checks.positive(max_epsilon=max_epsilon)
    if config.privacy.noise_multiplier is None:
        raise ConfigError(
            f"{config.where('privacy')}: the most epochs follow from a noise multiplier; give privacy.noise_multiplier"
        )
    plan = plan_training(config, num_examples)
    privacy = config.privacy
    with blame(config, "privacy"):
        return max_steps(
            max_epsilon,
            privacy.delta,
            lambda epochs: plan.ledger(epochs * plan.steps_per_epoch),
            privacy.accountant,
            limit=MOST_EPOCHS,
        )


def with_noise_multiplier(config: Config, noise_multiplier: float) -> Config:
    """The configuration with that noise multiplier in place of a target epsilon."""
    privacy = config.privacy.model_copy(update={"noise_multiplier": noise_multiplier, "target_epsilon": None})
    return config.model_copy(update={"privacy": privacy})


def _calibrated(config: Config, num_examples: int) -> float:
    privacy = config.privacy
    assert privacy.target_epsilon is not None
    steps = config.training.epochs * make_sampler(config, num_examples).steps_per_epoch

    def ledger_of(noise_multiplier: float) -> Ledger:
        return release_plan(with_noise_multiplier(config, noise_multiplier), num_examples).ledger(steps)

    return calibrate_noise_multiplier(privacy.target_epsilon, privacy.delta, ledger_of, privacy.accountant)
