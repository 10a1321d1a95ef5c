"""Carries out a search: draw the values, solve for the noise multiplier, charge, train, choose."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dpmodel.callbacks.watched_metric import direction
from dpmodel.compare.jobs import Job, JobOutcome, is_finished
from dpmodel.compare.pool import default_jobs, run_jobs
from dpmodel.compare.runner import NullWatcher, Watcher
from dpmodel.config.faults import locating_errors
from dpmodel.config.schema import Config
from dpmodel.planning.from_config import with_noise_multiplier
from dpmodel.planning.noise_floor import HIGHEST_FIRST
from dpmodel.planning.training_plan import TrainingPlan
from dpmodel.runs.build import build_training
from dpmodel.runs.folder import RunFolder
from dpmodel.saving.lock import LOCK_NAME, FolderLock
from dpmodel.training.history import History
from dpmodel.tuning.search import Tuning
from monitors import checks
from monitors.atomic import write_atomically
from monitors.calibration import calibrate_noise_multiplier
from monitors.errors import ConfigError
from monitors.ledger import Ledger
from monitors.spent import PrivacySpent, privacy_spent

#: Reports of a search, in words and as data.
REPORTS = ("tuning.md", "tuning.json")
#: Length of a run's name, which reveals nothing about its place among the runs.
_NAME_BYTES = 4


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
    """
    processes = default_jobs() if jobs is None else jobs
    checks.positive_int(jobs=processes)
    progress = NullWatcher() if watcher is None else watcher
    folder = Path(directory) if directory is not None else tuning.directory
    _require_buildable(tuning)
    with FolderLock(folder) as lock:
        progress.calibrating(tuning.name)
        trials = _planned(tuning, folder, *_drawn(tuning, folder))
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


def _drawn(tuning: Tuning, folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Values and name of every run: drawn once, then read back, so that a resumed search is the same search."""
    path, digest = folder / "search.json", _digest(tuning)
    if path.is_file():
        return _stored(path, digest)
    if any(file.name != LOCK_NAME for file in folder.iterdir()):
        raise ConfigError(f"{folder} is not empty and does not hold a search; choose a different folder with --output")
    # The price of random stopping holds only if the number of runs is secret.
    secret = random.SystemRandom()
    runs = [tuning.draw(secret) for _ in range(tuning.charge.number(tuning.definition.runs, secret))]
    # The place of the best run must be secret too, because it reveals how many runs there are.
    names = [secrets.token_hex(_NAME_BYTES) for _ in runs]
    for values in runs:
        tuning.config(values)
    write_atomically(path, json.dumps({"digest": digest, "runs": runs, "names": names}, indent=1) + "\n")
    return runs, names


def _stored(path: Path, digest: str) -> tuple[list[dict[str, Any]], list[str]]:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        found, runs, names = stored["digest"], list(stored["runs"]), list(stored["names"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged ({error}); choose a different folder with --output") from error
    if found != digest:
        raise ConfigError(
            f"{path.parent} holds a different search, or this one before its file was changed; choose a different "
            "folder with --output"
        )
    return runs, names


def _digest(tuning: Tuning) -> str:
    content = [tuning.definition.model_dump(mode="json"), tuning.base.values]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _planned(tuning: Tuning, folder: Path, runs: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[Trial]:
    """Every run with its multiplier; each is built once, so that faults show before the first training."""
    plans = [build_training(_provisional(tuning.config(values))).plan for values in runs]
    target = tuning.config().privacy.target_epsilon
    if target is not None and tuning.charge.as_one:
        multiplier = _shared_multiplier(tuning, plans, target)
        plans = [plan.at(multiplier) for plan in plans]
    elif target is not None:
        plans = [plan.solved_for(target) for plan in plans]
    return [
        Trial(number, values, RunFolder(folder / "trials" / name), plan)
        for number, (values, name, plan) in enumerate(zip(runs, names, plans, strict=True), start=1)
    ]


def _provisional(config: Config) -> Config:
    """The configuration at a provisional multiplier, to be checked and planned before the right one is known."""
    return config if config.privacy.target_epsilon is None else with_noise_multiplier(config, HIGHEST_FIRST)


def _shared_multiplier(tuning: Tuning, plans: Sequence[TrainingPlan], target: float) -> float:
    config = plans[0].config

    def ledger_of(multiplier: float) -> Ledger:
        planned = [plan.release.at(multiplier).ledger_to_search(plan.steps) for plan in plans]
        return tuning.charge.ledger(planned, tuning.definition.runs)

    with locating_errors(config, "privacy.target_epsilon"):
        return calibrate_noise_multiplier(target, config.privacy.delta, ledger_of, config.privacy.accountant)


def _charge(tuning: Tuning, folder: Path, trials: Sequence[Trial]) -> Ledger:
    """The ledger of the search: as charged, plus every run that was interrupted."""
    with locating_errors(trials[0].plan.config, "privacy"):
        ledger = tuning.charge.ledger([trial.plan.ledger() for trial in trials], tuning.definition.runs)
    broken_off = [
        RunFolder(path.parent).read_ledger() for path in sorted(folder.glob("trials/*.previous-*/ledger.json"))
    ]
    return ledger.merge(*broken_off, *(_beside_the_plan(trial) for trial in trials if trial.folder.ledger.is_file()))


def _beside_the_plan(trial: Trial) -> Ledger:
    """The lost steps of a finished run; all steps of an unfinished one."""
    ledger = trial.folder.read_ledger()
    return ledger.lost if is_finished(trial.folder, trial.plan.config) else ledger


def _job(number: int, trial: Trial) -> Job:
    config, seed = trial.plan.config, trial.plan.config.training.seed
    label, path = f"run {trial.folder.path.name}", str(trial.folder.path)
    return Job(number, label, seed or 0, trial.plan.steps, path, config.to_yaml())


def _concluded(tuning: Tuning, folder: Path, trials: Sequence[Trial], outcomes: Sequence[JobOutcome]) -> TuningRun:
    scored = tuple(replace(trial, score=_score(tuning, trial)) for trial in trials)
    best = _best(scored, direction(tuning.definition.metric, "auto"))
    ledger = _charge(tuning, folder, scored)
    if not tuning.charge.as_one and best is not None:
        ledger = tuning.charge.ledger([best.plan.ledger().merge(_beside_the_plan(best))], 1)
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
    history = History.from_csv(trial.folder.history, trial.plan.config.privacy.delta)
    metric = tuning.definition.metric
    value = history.column("valid_loss" if metric == "loss" else metric)[-1]
    return None if value is None else float(value)
