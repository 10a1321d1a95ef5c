"""Results of a comparison, read from its run folders: one row per variant."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dpmodel.compare.begun import vanished_in
from dpmodel.compare.comparison import Comparison
from dpmodel.compare.definition import TuneSection
from dpmodel.compare.equal_epsilon import CalibratedVariant, within_target
from dpmodel.compare.folder import ComparisonFolder, in_short
from dpmodel.compare.jobs import is_finished
from dpmodel.compare.statistics import Summary, paired_difference, summarise, verdict
from dpmodel.planning.release import ReleasePlan
from dpmodel.planning.training_plan import TrainingPlan
from dpmodel.runs.folder import RunFolder
from dpmodel.training.history import History
from monitors.errors import DataError
from monitors.events import PrivacyEvent
from monitors.ledger import Ledger
from monitors.spent import PrivacySpent, describe_sampling, epsilon_text, privacy_spent, resolve_accountant
from monitors.untrusted import read_json

FORMAT = "dpmodel-comparison/1"

_TRAIN_AGAIN = "move the run folder away and repeat the command to train it again"

#: A report may come from a different version of an accountant, whose bound is a little tighter or looser.
_SAME_EPSILON = 0.01

#: Rows of a ledger -> their epsilon.
_Known = dict[tuple[tuple[PrivacyEvent, int], ...], float]


@dataclass(frozen=True)
class RunRow:
    """One finished run.

    Args:
        seed: Seed of the initial weights.
        folder: Run folder.
        history: Its history.
        value: The compared metric after the last epoch.
        epsilon: Epsilon of the steps that led to the model, computed from its ledger. Steps lost with a killed process
            are not part of the comparison; ``ComparisonResult.composed`` includes them.
        status: ``"finished"``, or why it ended early.
        note: A contradiction between its report and its ledger, which counts; None if there is none.
    """

    seed: int
    folder: RunFolder
    history: History
    value: float
    epsilon: float
    status: str
    note: str | None = None

    @property
    def seconds(self) -> float:
        """Wall time of its epochs."""
        return math.fsum(value for value in self.history.column("seconds") if value is not None)


@dataclass(frozen=True)
class VariantRow:
    """One variant with its finished runs, at least one.

    Args:
        name: Its name.
        plan: The planned release of each run.
        runs: Finished runs, in the order of the seeds.
        summary: The compared metric over the seeds.
        difference: Paired difference to the baseline; None for the baseline, or if they share no seed.
    """

    name: str
    plan: TrainingPlan
    runs: tuple[RunRow, ...]
    summary: Summary
    difference: Summary | None

    @property
    def epsilon(self) -> float:
        """The largest epsilon of its runs."""
        return max(run.epsilon for run in self.runs)

    @property
    def least_epsilon(self) -> float:
        """The smallest epsilon of its runs."""
        return min(run.epsilon for run in self.runs)

    @property
    def seconds(self) -> float:
        """Mean wall time of a run."""
        return math.fsum(run.seconds for run in self.runs) / len(self.runs)

    @property
    def multipliers(self) -> tuple[float, float]:
        """Noise multiplier of the first and of the last step."""
        noise = self.plan.release.noise
        return noise.noise_multiplier(0), noise.noise_multiplier(self.plan.steps - 1)


@dataclass(frozen=True)
class ComparisonResult:
    """The rows of a comparison and its privacy as a whole.

    Args:
        comparison: The comparison.
        variants: Rows of the variants that have a finished run, in the order of the file.
        composed: Privacy spent by all trainings ever made in the folder, including interrupted ones.
        trainings: Number of these trainings.
        lost_steps: Number of their steps that were lost with killed processes.
        trials: Results of the search by which the variants chose some of their settings; None: there was none.
    """

    comparison: Comparison
    variants: tuple[VariantRow, ...]
    composed: PrivacySpent
    trainings: int
    lost_steps: int = 0
    trials: ComparisonResult | None = None

    @property
    def baseline(self) -> str:
        """Name of the variant that the others are compared with."""
        return self.comparison.definition.baseline_name

    @property
    def equal(self) -> bool:
        """Whether every run spent the target: never more, and less only within the tolerance."""
        target = self.comparison.definition.target.epsilon
        return all(within_target(run.epsilon, target) for row in self.variants for run in row.runs)

    @property
    def caveats(self) -> tuple[str, ...]:
        """Sentences that must accompany the table."""
        count = sum(len(row.runs) for row in self.variants)
        composed = epsilon_text(self.composed.epsilon)
        found = [
            f"comparison of {count} runs: not accounted as one release. Each run alone spends the target; all "
            f"{self.trainings} trainings in this folder{self._lost_in_words} together spend epsilon {composed} at "
            f"delta {self.composed.delta:g} (accountant {self.composed.accountant}). On private data, publishing this "
            "table spends that much.",
            f"Metrics are those of the last epoch, computed on {self._measured_on} without noise; no epoch was "
            "selected.",
            "Intervals are 95 % Student intervals over the seeds, each valid separately and not all jointly. Runs with "
            "the same seed share their initial weights; noise and sampling are drawn independently in every run.",
        ]
        definition = self.comparison.definition
        if self.trials is not None and definition.tune is not None:
            found[1:1] = tuned_in_words(definition.tune, definition.metric)
            if not self.trials.equal:
                found.insert(0, "NOT AT EQUAL EPSILON in tune: " + "; ".join(self.trials._unequal()))
        missing = len(definition.variants) * len(definition.seeds) - count
        if missing:
            found.insert(0, f"NOT COMPLETE: {missing} runs are not finished; rows with fewer runs are less certain.")
        found += self.composed.notes
        found += [run.note for row in self.variants for run in row.runs if run.note is not None]
        if not self.equal:
            found.insert(0, "NOT AT EQUAL EPSILON: " + "; ".join(self._unequal()))
        return tuple(found)

    @property
    def _measured_on(self) -> str:
        held_out = self.variants[0].plan.config.data.validation
        return "the test examples" if held_out is None else f"{held_out:,} training examples that were held out"

    @property
    def _lost_in_words(self) -> str:
        return f", including {self.lost_steps:,} steps lost with killed processes," if self.lost_steps else ""

    def _unequal(self) -> list[str]:
        target = self.comparison.definition.target.epsilon
        return [
            f"{row.name}, seed {run.seed}: epsilon {run.epsilon:.6g} ({run.status})"
            for row in self.variants
            for run in row.runs
            if not within_target(run.epsilon, target)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; an infinite epsilon is the string ``"inf"``."""
        definition = self.comparison.definition
        composed = self.composed.to_dict()
        return {
            "format": FORMAT,
            "name": self.comparison.name,
            "target": definition.target.model_dump(),
            "seeds": list(definition.seeds),
            "baseline": self.baseline,
            "metric": definition.metric,
            "equal_epsilon": self.equal,
            "variants": [_row_dict(row) for row in self.variants],
            "composed": {**composed, "trainings": self.trainings, "lost_steps": self.lost_steps},
            "tune": self._tuned(),
            "caveats": list(self.caveats),
        }

    def _tuned(self) -> dict[str, Any] | None:
        """The search: what was tried, its scores, and the chosen values."""
        definition = self.comparison.definition
        if self.trials is None or definition.tune is None:
            return None
        return {
            **definition.tune.model_dump(mode="json"),
            "chosen": {variant.name: dict(variant.tuned) for variant in self.comparison.variants},
            "trials": {
                row.name: row.summary.mean if math.isfinite(row.summary.mean) else None for row in self.trials.variants
            },
        }


def tuned_in_words(tune: TuneSection, metric: str) -> list[str]:
    """How the variants chose their settings, and what that releases, as sentences."""
    paths, seeds = ", ".join(tune.search), ", ".join(map(str, tune.seeds))
    return [
        f"Each variant chose {paths} by its mean {metric} on {tune.validation:,} training examples that were held out "
        f"(seeds {seeds}), at the same epsilon. Nothing was chosen on the test examples.",
        "The held-out scores and the choice were released without noise about examples that the compared runs train "
        "on; this is not part of any epsilon here.",
    ]


def collect(
    comparison: Comparison,
    variants: Sequence[CalibratedVariant],
    folder: ComparisonFolder,
    trials: ComparisonResult | None = None,
) -> ComparisonResult | None:
    """Read the finished runs of a comparison; None if there are none.

    Args:
        comparison: The comparison, whose variants have chosen their settings.
        variants: Its variants.
        folder: Its folder.
        trials: Results of the search by which they chose.

    Raises:
        DataError: A run folder is damaged, or its report does not match its ledger.
    """
    from dpmodel.metrics.names import FRACTIONS

    seeds = comparison.definition.seeds
    runs = {variant.name: _runs(comparison, variant, folder, seeds) for variant in variants}
    base = {run.seed: run.value for run in runs[comparison.definition.baseline_name]}
    rows, limits = [], (0.0, 1.0) if comparison.definition.metric in FRACTIONS else None
    for variant in variants:
        done = runs[variant.name]
        if not done:
            continue
        values = {run.seed: run.value for run in done}
        is_base = variant.name == comparison.definition.baseline_name
        difference = None if is_base else paired_difference(values, base, limits)
        summary = summarise(list(values.values()), limits)
        rows.append(VariantRow(variant.name, variant.plan, done, summary, difference))
    if not rows:
        return None
    return ComparisonResult(comparison, tuple(rows), *_composed(comparison, variants[0].plan.release, folder), trials)


def _runs(
    comparison: Comparison, variant: CalibratedVariant, folder: ComparisonFolder, seeds: Sequence[int]
) -> tuple[RunRow, ...]:
    targets = [(seed, folder.run(variant.slug, seed)) for seed in seeds]
    # Every whole run of a variant has the same kept ledger, and a tight epsilon takes seconds.
    known = {variant.plan.ledger().rows: variant.epsilon}
    return tuple(
        _run(comparison, variant, seed, target, known)
        for seed, target in targets
        if is_finished(target, variant.config(seed))
    )


def _run(comparison: Comparison, variant: CalibratedVariant, seed: int, folder: RunFolder, known: _Known) -> RunRow:
    definition = comparison.definition
    target = definition.target
    try:
        report = read_json(folder.report)
        ledger = folder.read_ledger()
        history = History.from_csv(folder.history, target.delta)
        history.read_norm_bounds(folder.norm_bounds)
        column = "valid_loss" if definition.metric == "loss" else definition.metric
        value = float(history.column(column)[-1])
        digest, status, stated = report["ledger_digest"], str(report["status"]), report["epsilon_without_lost_steps"]
        rows = ledger.kept.rows
        if rows not in known:
            known[rows] = resolve_accountant(target.accountant).epsilon(ledger.kept, target.delta)
    except (OSError, ValueError, TypeError, LookupError, OverflowError, csv.Error) as error:
        raise DataError(f"{folder.path} cannot be read as a finished run: {in_short(error)}; {_TRAIN_AGAIN}") from error
    if ledger.digest() != digest:
        raise DataError(
            f"{folder.report} does not match {folder.ledger}: its digest is {str(digest)[:80]!r}, not "
            f"{ledger.digest()!r}; {_TRAIN_AGAIN}"
        )
    if status == "finished" and ledger.kept.total < variant.plan.steps:
        raise DataError(
            f"{folder.report} says that the training is finished, but {folder.ledger.name} holds {ledger.kept.total:,} "
            f"of {variant.plan.steps:,} steps; {_TRAIN_AGAIN}"
        )
    return RunRow(seed, folder, history, value, known[rows], status, _contradiction(folder, stated, known[rows]))


def _contradiction(folder: RunFolder, stated: Any, epsilon: float) -> str | None:
    try:
        if math.isclose(float(stated), epsilon, rel_tol=_SAME_EPSILON):
            return None
    except (TypeError, ValueError, OverflowError):
        pass
    return f"{folder.report} states epsilon {str(stated)[:40]}, but its ledger gives {epsilon:.6g}, which counts."


def _composed(comparison: Comparison, release: ReleasePlan, folder: ComparisonFolder) -> tuple[PrivacySpent, int, int]:
    target = comparison.definition.target
    ledgers = list(folder.ledgers().values())
    for run, planned in vanished_in(folder):
        note = f"an earlier training in {run.path} has vanished: it is charged in full"
        ledgers.append(planned.merge(Ledger([note])))
    merged = ledgers[0].merge(*ledgers[1:])
    meaning = {"unit": release.unit.describe(), "relation": release.sampler.relation}
    statement = {**meaning, "sampling": describe_sampling(merged)}
    try:
        spent = privacy_spent(merged, target.delta, target.accountant, statement)
    except ValueError as error:
        raise DataError(f"cannot compute the total epsilon of the trainings in {folder.path}: {error}") from error
    return spent, len(ledgers), merged.lost.total


def _row_dict(row: VariantRow) -> dict[str, Any]:
    first, last = row.multipliers
    return {
        "name": row.name,
        "summary": summary_dict(row.summary),
        "difference": None if row.difference is None else summary_dict(row.difference),
        "verdict": None if row.difference is None else verdict(row.difference),
        "epsilon": row.epsilon,
        "least_epsilon": row.least_epsilon,
        "initial_noise_multiplier": first,
        "last_noise_multiplier": last,
        "seconds": row.seconds,
        "runs": [
            {
                "seed": run.seed,
                "value": run.value,
                "epsilon": run.epsilon,
                "seconds": run.seconds,
                "status": run.status,
                "folder": str(run.folder.path),
            }
            for run in row.runs
        ],
    }


def summary_dict(summary: Summary) -> dict[str, float | int | None]:
    """A summary as plain JSON values."""
    return {
        "count": summary.count,
        "mean": summary.mean,
        "deviation": summary.deviation,
        "low": summary.low,
        "high": summary.high,
    }
