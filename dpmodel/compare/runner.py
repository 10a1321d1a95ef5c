"""Runs a comparison: calibrate, train the missing runs, and collect the results."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from dpmodel.compare.begun import BegunMark, vanished_in
from dpmodel.compare.comparison import Comparison
from dpmodel.compare.equal_epsilon import CalibratedVariant, calibrate_variants
from dpmodel.compare.folder import ComparisonFolder, require_distinct
from dpmodel.compare.jobs import Job, JobOutcome, PooledJob, PooledRun, is_finished
from dpmodel.compare.plan import Plan
from dpmodel.compare.pool import Listener, available_cores, default_jobs, run_jobs
from dpmodel.compare.results import ComparisonResult, collect
from dpmodel.config.schema import Config
from dpmodel.saving.lock import FolderLock
from monitors import checks


class Watcher(Listener, Protocol):
    """An observer of a comparison."""

    def calibrating(self, name: str) -> None:
        """A variant is being calibrated."""

    def training(self, jobs: Sequence[PooledJob], reused: int) -> None:
        """Calibration is done: ``jobs`` are to be trained, and ``reused`` runs are already finished."""


class NullWatcher:
    """A watcher that shows nothing."""

    def calibrating(self, name: str) -> None:
        """Nothing."""

    def training(self, jobs: Sequence[PooledJob], reused: int) -> None:
        """Nothing."""

    def began(self, job: PooledJob) -> None:
        """Nothing."""

    def stepped(self, job: PooledJob, step: int) -> None:
        """Nothing."""

    def ended(self, outcome: JobOutcome) -> None:
        """Nothing."""

    def held(self, job: PooledJob, holder: str) -> None:
        """Nothing."""


@dataclass(frozen=True)
class ComparisonRun(PooledRun):
    """Outcome of ``run_comparison``.

    Args:
        folder: Folder of the comparison.
        result: Results of the finished runs; None if there are none, or if other processes train some of the runs.
        reused: Number of runs that were already finished.
        outcomes: How each training of this call ended.
        missing: Number of runs that are not finished.
        busy: The run folders that other processes train in, and these processes in words.
    """

    folder: ComparisonFolder
    result: ComparisonResult | None
    reused: int
    outcomes: tuple[JobOutcome, ...] = field(default_factory=tuple)
    missing: int = 0
    busy: Mapping[Path, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether all runs are finished and spent the same epsilon."""
        return self.missing == 0 and self.result is not None and self.result.equal


def run_comparison(
    comparison: Comparison,
    directory: str | os.PathLike[str] | None = None,
    *,
    jobs: int | None = None,
    watcher: Watcher | None = None,
) -> ComparisonRun:
    """Run ``comparison``. Finished runs in its folder are reused; interrupted runs resume from their last saved state.

    Everything that can be refused is refused before the first training. A resumed run spends the target as if it had
    not been interrupted. Steps that were lost with a killed process, and runs that could not be resumed, are kept and
    count towards the total of the comparison. One process at a time leads the comparison: it states the results. Others
    may train some of its runs (see ``join_comparison``); this one waits for them, and then trains what they have left
    unfinished. If it is interrupted while they train, it states no results.

    If the comparison has a search, its trainings come first, in the sub-folder ``tune``; the variants then take the
    values that they chose.

    Args:
        comparison: The comparison.
        directory: Its folder; default: ``comparison.directory``.
        jobs: Number of trainings in parallel; default: half of the cores. The cores are divided among them.
        watcher: Is notified of the progress.

    Raises:
        ConfigError: A variant is invalid or cannot meet the target, or a different process leads the comparison.
        DataError: A ledger in the folder is missing or damaged, or contradicts the report beside it.
    """
    processes = default_jobs() if jobs is None else jobs
    checks.positive_int(jobs=processes)
    observer = NullWatcher() if watcher is None else watcher
    folder = ComparisonFolder(Path(directory) if directory is not None else comparison.directory)
    with FolderLock(folder.path) as lock:
        lock.remove(folder.plan)  # of a killed process; those that joined it begin no further run
        folder.ledgers(), vanished_in(folder)  # a damaged one is refused before more is spent
        lead = _Lead(lock, folder, processes, observer)
        if comparison.search is None:
            return lead.train(comparison, folder)
        calibrate_variants(comparison.search.finals, folder.multipliers, observer.calibrating)
        trials = lead.train(comparison.search.trials, folder.trials)
        if trials.missing or trials.result is None or trials.interrupted or trials.signal is not None:
            untried = len(comparison.variants) * len(comparison.definition.seeds)
            return replace(trials, folder=folder, result=None, missing=trials.missing + untried)
        run = lead.train(comparison.search.chosen(comparison, trials.result), folder, trials.result)
    return replace(run, outcomes=trials.outcomes + run.outcomes, reused=trials.reused + run.reused)


@dataclass(frozen=True)
class _Lead:
    """The process that leads a comparison: it trains what is missing, and states the results."""

    lock: FolderLock
    main: ComparisonFolder
    processes: int
    observer: Watcher

    def train(
        self, comparison: Comparison, folder: ComparisonFolder, trials: ComparisonResult | None = None
    ) -> ComparisonRun:
        """Train the missing runs of ``comparison``, which may be the search of one, in ``folder``."""
        seeds = comparison.definition.seeds
        require_distinct(folder.run(variant.slug, seed) for variant in comparison.variants for seed in seeds)
        variants = calibrate_variants(comparison, folder.multipliers, self.observer.calibrating)
        all_jobs, reused = missing_jobs(comparison, variants, folder, self.processes)
        self.observer.training(all_jobs, reused)
        outcomes: list[JobOutcome] = []
        if all_jobs:
            self.main.withdraw()
            with Plan.of(self.main.plan, variants, seeds).offered(self.lock):
                outcomes = run_jobs(all_jobs, self.processes, self.observer)
        self.lock.require_in_place()
        busy, missing = _unfinished(comparison, variants, folder)
        result = None if busy else collect(comparison, variants, folder, trials)
        return ComparisonRun(folder, result, reused, tuple(outcomes), missing, busy)


def _unfinished(
    comparison: Comparison, variants: tuple[CalibratedVariant, ...], folder: ComparisonFolder
) -> tuple[dict[Path, str], int]:
    """The run folders in which other processes train, and the number of runs that are not finished."""
    busy = folder.busy()  # before: what is finished since may still be held, but is not trained again
    wanted = [
        (folder.run(variant.slug, seed), variant.config(seed))
        for variant in variants
        for seed in comparison.definition.seeds
    ]
    finished = [target.path for target, config in wanted if is_finished(target, config)]
    return {path: words for path, words in busy.items() if path not in finished}, len(wanted) - len(finished)


def missing_jobs(
    comparison: Comparison,
    variants: tuple[CalibratedVariant, ...],
    folder: ComparisonFolder,
    processes: int,
    plan: Plan | None = None,
) -> tuple[list[Job], int]:
    """The missing trainings, seed by seed so that an early end leaves complete pairs; the number of finished runs."""
    jobs: list[Job] = []
    wanted = [(seed, variant) for seed in comparison.definition.seeds for variant in variants]
    for seed, variant in wanted:
        config, target = variant.config(seed), folder.run(variant.slug, seed)
        if not is_finished(target, config):
            settings = with_threads(config, processes).to_yaml()
            begun, steps = BegunMark.of(target, folder.runs, folder.begun), variant.plan.steps
            jobs.append(Job(len(jobs), variant.name, seed, steps, str(target.path), begun, settings, plan))
    return jobs, len(wanted) - len(jobs)


def with_threads(config: Config, processes: int) -> Config:
    """The configuration with its share of the cores, unless it sets the number of threads itself."""
    if config.performance.threads is not None or processes == 1:
        return config
    threads = max(1, available_cores() // processes)
    return config.model_copy(update={"performance": config.performance.model_copy(update={"threads": threads})})
