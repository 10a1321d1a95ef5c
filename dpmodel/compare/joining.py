"""Joins a comparison that a different process leads, on this machine or another one, and trains some of its runs."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from dpmodel.compare.comparison import Comparison
from dpmodel.compare.equal_epsilon import CalibratedVariant, calibrate_variants
from dpmodel.compare.folder import ComparisonFolder
from dpmodel.compare.jobs import JobOutcome
from dpmodel.compare.plan import Plan, await_offer, next_offer
from dpmodel.compare.pool import default_jobs, run_jobs
from dpmodel.compare.results import collect
from dpmodel.compare.runner import ComparisonRun, NullWatcher, Watcher, missing_jobs
from monitors import checks


def join_comparison(
    comparison: Comparison,
    directory: str | os.PathLike[str] | None = None,
    *,
    jobs: int | None = None,
    watcher: Watcher | None = None,
) -> ComparisonRun:
    """Train runs of ``comparison`` beside the process that leads it (``run_comparison``), until none is left to take.

    A run is taken by the lock of its folder, so no two processes train it at the same time. An interrupted run that
    nobody holds is resumed. When the leading process ends, however it ends, this one finishes the runs that it has
    begun and takes no others. It writes nothing but run folders and their marks; the leading process states the
    results, which are those of one process.

    Args:
        comparison: The comparison, with the same settings as in the leading process.
        directory: Its folder, on a file system that passes locks (``flock``) between the machines; default:
            ``comparison.directory``.
        jobs: Number of trainings in parallel; default: half of the cores. The cores are divided among them.
        watcher: Is notified of the progress.

    Returns:
        How each training of this call ended, without results.

    Raises:
        ConfigError: No process leads the comparison, the lock of the one that does cannot be seen from here, or its
            settings, data or versions differ.
    """
    processes = default_jobs() if jobs is None else jobs
    checks.positive_int(jobs=processes)
    observer = NullWatcher() if watcher is None else watcher
    folder = ComparisonFolder(Path(directory) if directory is not None else comparison.directory)
    offered = await_offer(folder.plan)
    if comparison.search is None:
        return _join(comparison, folder, processes, observer)
    trials, place = comparison.search.trials, folder.trials
    variants = calibrate_variants(trials, place.multipliers, observer.calibrating, solve=False)
    plan = Plan.of(folder.plan, variants, trials.definition.seeds)
    outcomes: tuple[JobOutcome, ...] = ()
    if offered == plan.text:
        tried = _train(trials, variants, place, plan, processes, observer)
        if tried.interrupted or next_offer(folder.plan, after=plan.text) is None:
            return replace(tried, folder=folder)
        outcomes = tried.outcomes
    result = collect(trials, variants, place)
    if result is None or sum(len(row.runs) for row in result.variants) < len(variants) * len(trials.definition.seeds):
        plan.require_offered()
    assert result is not None
    run = _join(comparison.search.chosen(comparison, result), folder, processes, observer)
    return replace(run, outcomes=outcomes + run.outcomes)


def _join(comparison: Comparison, folder: ComparisonFolder, processes: int, observer: Watcher) -> ComparisonRun:
    variants = calibrate_variants(comparison, folder.multipliers, observer.calibrating, solve=False)
    plan = Plan.of(folder.plan, variants, comparison.definition.seeds)
    plan.require_offered()
    return _train(comparison, variants, folder, plan, processes, observer)


def _train(
    comparison: Comparison,
    variants: tuple[CalibratedVariant, ...],
    folder: ComparisonFolder,
    plan: Plan,
    processes: int,
    observer: Watcher,
) -> ComparisonRun:
    all_jobs, reused = missing_jobs(comparison, variants, folder, processes, plan)
    observer.training(all_jobs, reused)
    outcomes = run_jobs(all_jobs, processes, observer, wait=False) if all_jobs else []
    wanted = len(variants) * len(comparison.definition.seeds)
    done = reused + sum(outcome.finished for outcome in outcomes)
    return ComparisonRun(folder, None, reused, tuple(outcomes), wanted - done)
