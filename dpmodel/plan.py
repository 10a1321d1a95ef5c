"""What a configured training will release and spend, before anything is trained; needs neither data nor torch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dpmodel.config.faults import blame
from dpmodel.release import ReleasePlan
from mechanisms.factory import ClipMechanismsFactory, NoiseMechanismsFactory
from mechanisms.noise import NoiseMechanism, NoNoise
from mechanisms.sampling import SAMPLERS, Sampler
from mechanisms.units import ClippedUnit
from monitors import _checks
from monitors.accountant import PrivacySpent, privacy_spent
from monitors.calibration import SMALLEST_MULTIPLIER, calibrate_noise_multiplier, max_steps
from monitors.errors import CalibrationError, ConfigError
from monitors.events import DisjointEvent, NonPrivateEvent
from monitors.ledger import Ledger

if TYPE_CHECKING:
    from dpmodel.config.privacy import MechanismSection
    from dpmodel.config.schema import Config
    from mechanisms.clipping import ClipMechanism
    from monitors._registry import Registry
    from monitors.events import PrivacyEvent

#: Training examples of the public data sets, so that planning need not read them; checked where they are read.
KNOWN_SIZES: Mapping[str, int] = {"mnist": 60_000, "fashion_mnist": 60_000, "cifar10": 50_000}

#: Arguments of mechanisms that other settings give, or that are left to their defaults.
_FROM_ELSEWHERE = ("initial_noise_multiplier", "norm_bound", "seed")

#: Where the search for the most epochs gives up: so many epochs, or so many steps (seconds of writing them down).
MOST_EPOCHS, MOST_STEPS = 100_000, 2_000_000

#: A first multiplier above what any training uses; a schedule that falls to nothing even from here is refused.
HIGHEST_FIRST = 100.0


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
    _require_noise_left(config, size)
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
        _require_arguments(NoiseMechanismsFactory.registry, noise)
        return NoiseMechanismsFactory.create(noise.name, initial_noise_multiplier=multiplier, **noise.options)


def make_clip(config: Config) -> ClipMechanism:
    """The clip mechanism of a configuration, without a bound yet."""
    clip = config.privacy.clip
    with blame(config, "privacy.clip"):
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
        ConfigError: The configuration has no noise multiplier, or more than ``MOST_EPOCHS`` epochs or ``MOST_STEPS``
            steps fit.
    """
    with blame(config, "training.epochs"):
        _checks.positive(max_epsilon=max_epsilon)
    if config.privacy.noise_multiplier is None:
        raise ConfigError(
            f"{config.where('privacy')}: the most epochs follow from a noise multiplier; give privacy.noise_multiplier"
        )
    one_epoch = config.training.model_copy(update={"epochs": 1})
    plan = plan_training(config.model_copy(update={"training": one_epoch}), num_examples)
    limit = max(1, min(MOST_EPOCHS, MOST_STEPS // plan.steps_per_epoch))
    if _surely_fits(plan, limit, max_epsilon):
        raise _endless(plan, limit, max_epsilon)

    def ledger_of(epochs: int) -> Ledger:
        steps = epochs * plan.steps_per_epoch
        return _no_noise() if _falls_away(plan.release, steps) else plan.ledger(steps)

    privacy = config.privacy
    try:
        with blame(config, "privacy"):
            return max_steps(max_epsilon, privacy.delta, ledger_of, privacy.accountant, limit=limit)
    except ConfigError as error:
        if isinstance(error.__cause__, CalibrationError):
            raise _endless(plan, limit, max_epsilon) from error
        raise


def with_noise_multiplier(config: Config, noise_multiplier: float) -> Config:
    """The configuration with that noise multiplier in place of a target epsilon."""
    privacy = config.privacy.model_copy(update={"noise_multiplier": noise_multiplier, "target_epsilon": None})
    return config.model_copy(update={"privacy": privacy})


def ledger_to_search(config: Config, num_examples: int) -> Ledger:
    """The planned ledger while a noise multiplier is searched for.

    Where the schedule falls to nothing it stands as not private, which sends the search on to higher multipliers: the
    accounting of what it is would take minutes. ``plan_training`` refuses such a schedule.
    """
    release = release_plan(config, num_examples)
    steps = config.training.epochs * release.sampler.steps_per_epoch
    return _no_noise() if _falls_away(release, steps) else release.ledger(steps)


def _calibrated(config: Config, num_examples: int) -> float:
    privacy = config.privacy
    assert privacy.target_epsilon is not None

    def ledger_of(noise_multiplier: float) -> Ledger:
        return ledger_to_search(with_noise_multiplier(config, noise_multiplier), num_examples)

    return calibrate_noise_multiplier(privacy.target_epsilon, privacy.delta, ledger_of, privacy.accountant)


def _require_noise_left(config: Config, num_examples: int) -> None:
    """Refuse a schedule that falls to nothing: its epsilon would be astronomic, after minutes of accounting."""
    solved = config.privacy.target_epsilon is not None
    release = release_plan(with_noise_multiplier(config, HIGHEST_FIRST) if solved else config, num_examples)
    steps = config.training.epochs * release.sampler.steps_per_epoch
    if not _falls_away(release, steps):
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


def _falls_away(release: ReleasePlan, steps: int) -> bool:
    """Whether the multiplier sinks below the smallest that a search would give; low noise that stays is no fall."""
    noise = release.noise
    if not noise.private:
        return False
    bound = min(SMALLEST_MULTIPLIER, noise.noise_multiplier(0))
    # Nearly every schedule that falls is at its lowest in the end: it is found at the first look.
    return any(noise.noise_multiplier(step) < bound for step in reversed(range(steps)))


def _no_noise() -> Ledger:
    """What stands for a schedule that falls to nothing while searching: its own figure would take minutes."""
    return Ledger().record(NonPrivateEvent())


def _surely_fits(plan: TrainingPlan, epochs: int, max_epsilon: float) -> bool:
    """Whether so many epochs fit, seen without writing down their steps; False where that cannot be seen.

    Where the last step releases what the first does, all those between are taken to do so too: good enough to refuse a
    question, and for nothing else.
    """
    release, privacy, steps = plan.release, plan.config.privacy, epochs * plan.steps_per_epoch
    if release.noise.noise_multiplier(steps - 1) != release.noise.noise_multiplier(0):
        return False
    event, last, count = release.event(0), release.event(steps - 1), steps
    if isinstance(event, DisjointEvent) and isinstance(last, DisjointEvent):
        # The steps of an epoch share no example: together they cost what one of them does.
        event, last, count = event.event, last.event, epochs
    if last != event:
        return False
    with blame(plan.config, "privacy"):
        return privacy_spent(Ledger().record(event, count), privacy.delta, privacy.accountant).epsilon <= max_epsilon


def _endless(plan: TrainingPlan, epochs: int, max_epsilon: float) -> ConfigError:
    steps, delta = epochs * plan.steps_per_epoch, plan.config.privacy.delta
    return ConfigError(
        f"{plan.config.where('privacy.noise_multiplier')}: more than {epochs:,} epochs ({steps:,} steps) fit into "
        f"epsilon {max_epsilon:g} at delta {delta:g} with privacy.noise_multiplier={plan.noise_multiplier:g}, and the "
        "search ends there. Lower the noise multiplier or the epsilon, or choose a number of epochs and ask what it "
        "spends (--epochs)"
    )
