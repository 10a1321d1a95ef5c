"""Carries out a search: draw the values, solve for the noise multiplier, charge, train, choose."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dpmodel.callbacks.watched_metric import direction
from dpmodel.compare.begun import BegunMark, vanished_below
from dpmodel.compare.folder import BEGUN, in_short, ledgers_below
from dpmodel.compare.jobs import Job, JobOutcome, is_finished
from dpmodel.compare.pool import default_jobs, run_jobs
from dpmodel.compare.runner import NullWatcher, Watcher
from dpmodel.config.faults import locating_errors
from dpmodel.config.schema import Config
from dpmodel.planning.bands import leaves_bands_open
from dpmodel.planning.from_config import with_noise_multiplier
from dpmodel.planning.noise_floor import HIGHEST_FIRST
from dpmodel.planning.training_plan import TrainingPlan
from dpmodel.runs.build import build_training
from dpmodel.runs.folder import RunFolder
from dpmodel.saving.lock import FolderLock
from dpmodel.training.history import History
from dpmodel.tuning.drawn import DrawnRuns
from dpmodel.tuning.search import Tuning
from monitors import checks
from monitors.calibration import calibrate_noise_multiplier
from monitors.errors import DataError
from monitors.ledger import Ledger
from monitors.spent import PrivacySpent, privacy_spent

#: Reports of a search, in words and as data.
REPORTS = ("tuning.md", "tuning.json")

#: Subfolder of the run folders.
TRIALS = "trials"

#: The ledger of what a search is charged for good: unlike the steps of an unfinished run, it never becomes less.
CHARGED = "charged.json"


@dataclass(frozen=True)
class Trial:
    """One run of a search.

    Args:
        number: From 1, in the order of drawing; as secret as the number of runs.
        values: The drawn values.
        folder: Its run folder.
        plan: What it releases.
        score: The metric of its last epoch; None if it is not finished.
    """

    number: int
    values: Mapping[str, Any]
    folder: RunFolder
    plan: TrainingPlan
    score: float | None = None


@dataclass(frozen=True)
class TuningRun:
    """The result of a search.

    Args:
        tuning: The search.
        folder: Its folder.
        trials: All runs; their number may be secret.
        best: The best finished run, or None.
        spent: What the search spends, as it is charged.
        outcomes: How each training of this call ended.
    """

    tuning: Tuning
    folder: Path
    trials: tuple[Trial, ...]
    best: Trial | None
    spent: PrivacySpent
    outcomes: tuple[JobOutcome, ...]

    @property
    def ok(self) -> bool:
        """Whether every run is finished."""
        return all(trial.score is not None for trial in self.trials)

    def to_dict(self) -> dict[str, Any]:
        """What may be published about the search, as JSON values: nothing about the other runs or their number."""
        charge, definition = self.tuning.charge, self.tuning.definition
        best = self.best
        return {
            "name": self.tuning.name,
            "charge": definition.charge,
            "tuning": charge.statement,
            "may_be_published": charge.publishable,
            "runs": definition.runs,
            "metric": definition.metric,
            "best": None
            if best is None
            else {"values": dict(best.values), "score": best.score, "run": str(best.folder.path)},
            "privacy": self.spent.to_dict(),
            "finished": self.ok,
        }


def run_tuning(
    tuning: Tuning,
    directory: str | os.PathLike[str] | None = None,
    *,
    jobs: int | None = None,
    watcher: Watcher | None = None,
) -> TuningRun:
    """Run the search; the same call resumes it with the runs that were drawn at first.

    The ledger of the whole search is on disk before its first run starts. An interrupted run resumes from its last
    saved state. Its lost steps are charged in addition; until it is finished, so are all of its steps.

    Args:
        tuning: The search.
        directory: Its folder; default: that of the search.
        jobs: Trainings that run at once; default: half of the cores.
        watcher: Receives the progress.

    Raises:
        ConfigError: A setting is wrong, the target cannot be met, or the folder holds a different search.
        DataError: A ledger in the folder is missing or damaged.
    """
    processes = default_jobs() if jobs is None else jobs
    checks.positive_int(jobs=processes)
    progress = NullWatcher() if watcher is None else watcher
    folder = Path(directory) if directory is not None else tuning.directory
    _require_buildable(tuning)
    with FolderLock(folder) as lock:
        progress.calibrating(tuning.name)
        trials = _planned(tuning, folder, DrawnRuns.of(tuning, folder))
        _charge(tuning, folder, trials).save(folder / "ledger.json")
        todo = [trial for trial in trials if not is_finished(trial.folder, trial.plan.config)]
        work = [_job(index, trial) for index, trial in enumerate(todo)]
        progress.training(work, len(trials) - len(work))
        for name in REPORTS if work else ():
            (folder / name).unlink(missing_ok=True)  # they state an epsilon without the trainings that come now
        outcomes = run_jobs(work, processes, progress) if work else []
        lock.require_in_place()
        return _concluded(tuning, folder, trials, outcomes)


def _require_buildable(tuning: Tuning) -> None:
    """Build both ends of the search, so that faults show before anything is drawn, solved for or written."""
    for config in tuning.ends():
        build_training(_provisional(config))


def _planned(tuning: Tuning, folder: Path, drawn: DrawnRuns) -> list[Trial]:
    """Every run with its multiplier; each is built once, so that faults show before the first training."""
    plans = [build_training(_provisional(tuning.config(values))).plan for values in drawn.values]
    target = tuning.config().privacy.target_epsilon
    if target is not None and tuning.charge.as_one:
        multiplier = _shared_multiplier(tuning, plans, target)
        plans = [plan.at(multiplier) for plan in plans]
    elif target is not None:
        plans = [plan.solved_for(target) for plan in plans]
    return [
        Trial(number, values, RunFolder(folder / TRIALS / name), plan)
        for number, (values, name, plan) in enumerate(zip(drawn.values, drawn.names, plans, strict=True), start=1)
    ]


def _provisional(config: Config) -> Config:
    """The configuration at a provisional multiplier, to be checked and planned before the right one is known."""
    if config.privacy.target_epsilon is None or leaves_bands_open(config):  # the target decides about the bands
        return config
    return with_noise_multiplier(config, HIGHEST_FIRST)


def _shared_multiplier(tuning: Tuning, plans: Sequence[TrainingPlan], target: float) -> float:
    config = plans[0].config

    def ledger_of(multiplier: float) -> Ledger:
        planned = [
            plan.before.copy().extend(plan.release.at(multiplier).ledger_to_search(plan.steps), shift=0)
            for plan in plans
        ]
        return tuning.charge.ledger(planned, tuning.definition.runs)

    with locating_errors(config, "privacy.target_epsilon"):
        return calibrate_noise_multiplier(target, config.privacy.delta, ledger_of, config.privacy.accountant)


def _charge(tuning: Tuning, folder: Path, trials: Sequence[Trial]) -> Ledger:
    """The ledger of the search: as charged, plus all that was released beyond the plan.

    Beyond the plan are lost steps, runs that were moved aside or that no drawn run is named after, all steps of
    unfinished runs, and trainings that began and whose folder has vanished.
    """
    with locating_errors(trials[0].plan.config, "privacy"):
        charged = tuning.charge.ledger([trial.plan.ledger() for trial in trials], tuning.definition.runs)
    ledgers = ledgers_below(folder / TRIALS)
    unfinished = []
    for trial in trials:
        ledger = ledgers.pop(trial.folder.path, None)
        if ledger is not None:
            charged.extend(_beyond_the_plan(trial, ledger))
            if not is_finished(trial.folder, trial.plan.config):
                unfinished.append(Ledger(ledger.notes).extend(ledger.kept))
    for ledger in ledgers.values():
        charged.extend(ledger)
    for run, planned in vanished_below(folder / TRIALS, folder / BEGUN):
        charged.extend(planned)
        charged.add_note(f"an earlier training in {run.path} has vanished: it is charged in full")
    if tuning.charge.as_one:
        charged = _at_least_as_before(charged, folder / CHARGED)
    return charged.merge(*unfinished)


def _beyond_the_plan(trial: Trial, ledger: Ledger) -> Ledger:
    """What the run released and its plan lacks: lost steps, as a rule."""
    return ledger.lost.merge(ledger.kept.beyond(trial.plan.ledger()))


def _at_least_as_before(charged: Ledger, path: Path) -> Ledger:
    """``charged``, with all that was charged before and is missing now, such as a run whose folder was deleted.

    Raises:
        DataError: The earlier charge cannot be read.
    """
    try:
        before = Ledger.load(path) if path.exists() else Ledger()
        missing = before.beyond(charged)
        if missing.total:
            missing.add_note("runs that are no longer in the folder of this search are charged")
        charged = charged.merge(missing)
        charged.save(path)
    except (OSError, ValueError) as error:
        raise DataError(
            f"what this search was charged before cannot be read: {in_short(error)}; restore the original file, or "
            "choose a different folder with --output"
        ) from error
    return charged


def _job(number: int, trial: Trial) -> Job:
    config, seed = trial.plan.config, trial.plan.config.training.seed
    label, path = f"run {trial.folder.path.name}", str(trial.folder.path)
    runs = trial.folder.path.parent
    begun = BegunMark.of(trial.folder, runs, runs.parent / BEGUN)
    return Job(number, label, seed or 0, trial.plan.steps, path, begun, config.to_yaml())


def _concluded(tuning: Tuning, folder: Path, trials: Sequence[Trial], outcomes: Sequence[JobOutcome]) -> TuningRun:
    scored = tuple(replace(trial, score=_score(tuning, trial)) for trial in trials)
    best = _best(scored, direction(tuning.definition.metric, "auto"))
    ledger = _charge(tuning, folder, scored)
    if not tuning.charge.as_one and best is not None:
        beside = _beyond_the_plan(best, Ledger.load(best.folder.ledger))
        ledger = tuning.charge.ledger([best.plan.ledger().merge(beside)], 1)
    ledger.save(folder / "ledger.json")
    privacy, statement = trials[0].plan.config.privacy, trials[0].plan.release.statement
    spent = privacy_spent(ledger, privacy.delta, privacy.accountant, statement)
    return TuningRun(tuning, folder, scored, best, spent, tuple(outcomes))


def _best(trials: Sequence[Trial], sign: int) -> Trial | None:
    """The finished trial with the best score; NaN loses to every number."""
    scores = {trial.number: sign * trial.score for trial in trials if trial.score is not None}
    ranked = {number: -math.inf if math.isnan(score) else score for number, score in scores.items()}
    return max(
        (trial for trial in trials if trial.number in ranked), key=lambda trial: ranked[trial.number], default=None
    )


def _score(tuning: Tuning, trial: Trial) -> float | None:
    if not is_finished(trial.folder, trial.plan.config):
        return None
    metric = tuning.definition.metric
    try:
        history = History.from_csv(trial.folder.history, trial.plan.config.privacy.delta)
        value = history.column("valid_loss" if metric == "loss" else metric)[-1]
        return None if value is None else float(value)
    except (OSError, ValueError, LookupError, csv.Error) as error:
        raise DataError(
            f"the score of {trial.folder.path} cannot be read: {in_short(error)}; restore the original file"
        ) from error
