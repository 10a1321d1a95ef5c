"""Answers the three questions of planning: which epsilon, which noise multiplier, how many epochs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dpmodel.budget.scenarios import Scenario, figures_of, scenarios
from dpmodel.config.schema import Config
from dpmodel.planning.bands import BandsRow, configured_bands
from dpmodel.planning.longest import longest_training
from dpmodel.planning.training_plan import TrainingPlan, plan_training
from mechanisms.correlated.banded import BandedMF
from monitors import checks
from monitors.accountant import ACCOUNTANTS
from monitors.calibration import SMALLEST_MULTIPLIER
from monitors.errors import ConfigError
from monitors.spent import resolve_accountant

ALL = "all"


@dataclass(frozen=True)
class BudgetAnswer:
    """A planned training and what it would spend.

    Args:
        asked: ``"epsilon"``, ``"noise_multiplier"`` or ``"epochs"``: what was solved for.
        plan: The plan, with multiplier and epochs solved.
        figures: Epsilon by accountant, at least one; the reason if an accountant cannot state one.
        scenarios: The same noise under different sampling and clipping rules.
        bands: For correlated noise: what each number of bands needs at the same epsilon.
    """

    asked: str
    plan: TrainingPlan
    figures: dict[str, float | str]
    scenarios: tuple[Scenario, ...]
    bands: tuple[BandsRow, ...] = ()

    @property
    def epsilon(self) -> float:
        """The smallest epsilon that an accountant proves."""
        return min(value for value in self.figures.values() if isinstance(value, float))

    @property
    def notes(self) -> tuple[str, ...]:
        """How the answer differs from the question."""
        target, noise, before = self.plan.target_epsilon, self.plan.noise_multiplier, self.plan.before.total
        text = f"every figure covers the {before:,} releases before the first step (privacy.spent, normalise)"
        counted = tuple(filter(None, (text if before else "", self.plan.release.count_warning)))
        if target is None or noise > SMALLEST_MULTIPLIER:
            return counted
        return (
            *counted,
            f"the search ends at a noise multiplier of {SMALLEST_MULTIPLIER:g}, which stays below the target epsilon "
            f"of {target:g}; to spend more, give a smaller one with --noise-multiplier",
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; an infinite epsilon is the string ``"inf"``."""
        plan, release = self.plan, self.plan.release
        config = plan.config
        return {
            "asked": self.asked,
            "epsilon": json_number(self.epsilon),
            "delta": config.privacy.delta,
            "noise_multiplier": plan.noise_multiplier,
            "last_noise_multiplier": release.noise.noise_multiplier(plan.steps - 1),
            "epochs": config.training.epochs,
            "steps": plan.steps,
            "num_examples": release.sampler.stated_examples,
            "batch_size": release.sampler.batch_size,
            **release.statement,
            "epsilon_by_accountant": {name: json_number(value) for name, value in self.figures.items()},
            "notes": list(self.notes),
            "side_by_side": [scenario.to_dict() for scenario in self.scenarios],
            "bands": [asdict(row) for row in self.bands],
        }


def answer_budget(
    config: Config,
    num_examples: int | None = None,
    *,
    accountants: Sequence[str] | None = None,
    max_epsilon: float | None = None,
    tuning_runs: int | None = None,
) -> BudgetAnswer:
    """Plan ``config``: its epsilon, its multiplier for a target epsilon, or the most epochs that fit.

    Args:
        config: The configuration.
        num_examples: Training examples; default: what the configuration implies.
        accountants: Names; default: the configuration's, which also solves.
        max_epsilon: Solve for the most epochs within this epsilon; the configuration's own epochs are not used.
        tuning_runs: Also show what publishing the best of this many trainings spends.

    Raises:
        ConfigError: A value is out of range, a target cannot be met, or no accountant has a rule for the training.
        CalibrationError: Not even one epoch fits.

    Example:
        >>> from dpmodel.config import make_config
        >>> config = make_config({
        ...     "network": "lenet5", "optimizer": "SGD", "privacy": {"noise_multiplier": 1.5},
        ...     "training": {"epochs": 10, "batch_size": 256}})
        >>> round(answer_budget(config, 60000).epsilon, 3)
        0.628
    """
    if tuning_runs is not None:
        checks.positive_int(tuning_runs=tuning_runs)
    chosen = tuple(accountants or (config.privacy.accountant,))
    if max_epsilon is not None:
        asked, plan = "epochs", longest_training(config, max_epsilon, num_examples)
    else:
        asked = "epsilon" if config.privacy.target_epsilon is None else "noise_multiplier"
        plan = plan_training(config, num_examples)
    figures = figures_of(plan.summary(), plan.config.privacy.delta, chosen)
    if not any(isinstance(value, float) for value in figures.values()):
        raise ConfigError(f"{config.where('privacy.accountant')}: {'; '.join(map(str, figures.values()))}")
    bands = tuple(configured_bands(plan)) if isinstance(plan.release.noise, BandedMF) else ()
    return BudgetAnswer(asked, plan, figures, scenarios(plan, chosen, figures, tuning_runs), bands)


def known_accountants(name: str) -> tuple[str, ...]:
    """The accountants that ``name`` stands for: one, or every one for ``"all"``.

    Raises:
        ValueError: Unknown name; the nearest is suggested.
    """
    if name != ALL:
        return (resolve_accountant(name).name,)
    resolve_accountant("rdp")  # importing the accountants registers them
    return ACCOUNTANTS.names()


def json_number(value: float | str) -> float | str:
    """``value`` for JSON, which has no infinity."""
    return "inf" if value == float("inf") else value
