"""What a configured training will release and spend, known before it starts; needs no data.

It needs torch only for an open number of bands, which depends on the optimizer and the learning-rate schedule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from dpmodel.config.faults import locating_errors
from dpmodel.planning.bands import best_bands, configured_bands, with_bands
from dpmodel.planning.count_noise import count_remedy
from dpmodel.planning.from_config import release_plan, with_noise_multiplier
from dpmodel.planning.noise_floor import HIGHEST_FIRST, require_noise_left
from dpmodel.planning.spent_ledgers import spent_ledger
from dpmodel.runs.report.accesses import configured_accesses
from dpmodel.runs.report.subject import ReportSubject
from mechanisms.noise import AUTO
from monitors.errors import CalibrationError, ConfigError
from monitors.ledger import Ledger
from monitors.spent import PrivacySpent, privacy_spent

if TYPE_CHECKING:
    from dpmodel.config.schema import Config
    from dpmodel.planning.release import ReleasePlan

#: Training examples of the public data sets, so that planning need not read them; reading the data checks them.
KNOWN_SIZES: Mapping[str, int] = {"mnist": 60_000, "fashion_mnist": 60_000, "cifar10": 50_000}


@dataclass(frozen=True)
class TrainingPlan:
    """A training that is about to start, with its privacy.

    Args:
        config: The configuration; it states the noise multiplier, not a target epsilon.
        release: What each step releases, with the mechanisms that will train.
        target_epsilon: The target that the multiplier was solved for, else None.
        before: Releases about the same data before the first step (``privacy.spent`` and ``normalise``), which every
            figure covers.
    """

    config: Config
    release: ReleasePlan
    target_epsilon: float | None = None
    before: Ledger = field(default_factory=Ledger)
    _longest: Ledger = field(default_factory=Ledger, init=False, repr=False, compare=False)

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

    def summary(self, steps: int | None = None) -> Ledger:
        """A short ledger that costs at least as much as ``ledger(steps)``; see ``ReleasePlan.summary``."""
        found = self.before.copy().extend(self.release.summary(self.steps if steps is None else steps), shift=0)
        for caveat in self.release.caveats:
            found.add_note(caveat)
        return found

    @property
    def subject(self) -> ReportSubject:
        """The training as its privacy report describes it."""
        privacy, options, features = self.config.privacy, self.config.data.options, self.config.features
        constants = [f"data.{name}" for name in ("mean", "std") if options.get(name) is not None]
        if features is not None and features.name != "scattering":
            constants.append("features")
        return ReportSubject(
            self.release,
            privacy.norm_bound,
            self.steps,
            privacy.delta,
            privacy.accountant,
            target_epsilon=self.target_epsilon,
            public_constants=tuple(constants),
            rows_by_position=tuple(self.config.data.rows_by_position),
            accesses=configured_accesses(self.config.model_dump()),
            card=self.config.card,
        )

    def at(self, noise_multiplier: float) -> TrainingPlan:
        """This plan at a different initial noise multiplier."""
        config = with_noise_multiplier(self.config, noise_multiplier)
        return replace(self, config=config, release=self.release.at(noise_multiplier))

    def solved_for(self, target_epsilon: float) -> TrainingPlan:
        """This plan at the smallest initial noise multiplier that meets ``target_epsilon``.

        Raises:
            ConfigError: No multiplier meets it; names what would.
        """
        privacy = self.config.privacy
        with locating_errors(self.config, "privacy.target_epsilon"):
            try:
                multiplier = self.release.multiplier_for(
                    target_epsilon, privacy.delta, self.steps, privacy.accountant, self.before
                )
            except CalibrationError as error:
                raise CalibrationError(f"{error} {count_remedy(self, target_epsilon)}".rstrip()) from error
        config = with_noise_multiplier(self.config, multiplier)
        return TrainingPlan(config, self.release.at(multiplier), target_epsilon, self.before)

    def ledger(self, steps: int | None = None) -> Ledger:
        """The ledger after ``steps`` steps (default: all of them), earlier releases and notes included."""
        asked = self.steps if steps is None else steps
        # A search for the most epochs asks for many ledgers with the same first steps; make each event once.
        for step in range(self._longest.total, asked):
            self._longest.record(self.release.event(step))
        found = self.before.copy().extend(self._longest.head(asked), shift=0)
        for caveat in self.release.caveats:
            found.add_note(caveat)
        return found

    def privacy_spent(self, accountant: str | None = None, epochs: int | None = None) -> PrivacySpent:
        """What the training will have spent after ``epochs`` epochs (default: all of them).

        Args:
            accountant: Default: that of the configuration.
            epochs: Epochs, at least 1.
        """
        privacy = self.config.privacy
        steps = None if epochs is None else epochs * self.steps_per_epoch
        name = accountant or privacy.accountant
        return privacy_spent(self.summary(steps), privacy.delta, name, self.release.statement)


def plan_training(config: Config, num_examples: int | None = None) -> TrainingPlan:
    """The plan of a configuration: its mechanisms, built once; a target epsilon is solved for the noise multiplier.

    Args:
        config: The configuration.
        num_examples: Training examples; default: what the configuration implies.

    Raises:
        ConfigError: A value is out of range, settings contradict each other, or the target cannot be met.
    """
    size = expected_examples(config) if num_examples is None else num_examples
    privacy = config.privacy
    target, stated = privacy.target_epsilon, privacy.noise_multiplier
    before = spent_ledger(config) if privacy.spent else Ledger()
    if config.normalise is not None:
        before.extend(config.normalise.ledger)
    multiplier = HIGHEST_FIRST if stated is None else stated
    plan = TrainingPlan(config, release_plan(config, size, multiplier, before), before=before)
    if plan.release.noise.bands == AUTO:
        with locating_errors(config, "privacy.noise"):
            config = with_bands(config, best_bands(configured_bands(plan)).bands)
        plan = TrainingPlan(config, release_plan(config, size, plan.noise_multiplier, before), before=before)
    noise = plan.release.noise
    with locating_errors(
        config, "privacy.noise" if noise.noise_decay_rate is None else "privacy.noise.noise_decay_rate"
    ):
        require_noise_left(noise, plan.steps)
    return plan if target is None else plan.solved_for(target)


def expected_examples(config: Config) -> int:
    """Training examples that a configuration implies, without reading the data.

    Raises:
        ConfigError: The configuration does not say and the data set is not a public one.
    """
    data = config.data
    if config.privacy.num_examples_public is not None:
        return config.privacy.num_examples_public
    known = data.num_examples or data.limit or KNOWN_SIZES.get(data.name, 0) - (data.validation or 0)
    if known <= 0:
        raise ConfigError(
            f"{config.where('data')}: the number of training examples of {data.name!r} is not known without reading "
            "the data; set data.num_examples (or --num-examples)"
        )
    return known
