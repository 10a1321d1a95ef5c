"""A job: one training of a comparison or search, ready to be sent to a worker process."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dpmodel.callbacks.silence import Silence
from dpmodel.compare.begun import BegunMark
from dpmodel.compare.identity import config_digest
from dpmodel.config import load_config
from dpmodel.config.marked_yaml import read_yaml
from dpmodel.config.reader import checked_config
from dpmodel.runs.folder import RunFolder
from dpmodel.saving.lock import FolderLock
from monitors.errors import ConfigError, DPModelError

if TYPE_CHECKING:
    from dpmodel.config.schema import Config
    from dpmodel.training.run import Run
    from monitors.journal import ReleaseJournal

#: A worker ends this many seconds after its parent at the latest.
ORPHAN_SECONDS = 6.0

#: Called with (job number, steps done) after each step.
Stepped = Callable[[int, int], None]


@dataclass(frozen=True)
class Job:
    """One training to be done, in plain values that can be sent to a different process.

    Args:
        number: Position in the list of jobs.
        variant: Name of the variant.
        seed: Seed of the initial weights.
        steps: Number of steps.
        directory: Run folder.
        begun: File that names the trainings that began in this folder; see ``BegunMark``.
        settings: Configuration as YAML.
    """

    number: int
    variant: str
    seed: int
    steps: int
    directory: str
    begun: str
    settings: str = field(repr=False)

    @property
    def label(self) -> str:
        """Variant and seed, for messages."""
        return f"{self.variant}, seed {self.seed}"


@dataclass(frozen=True)
class JobOutcome:
    """How a job ended.

    Args:
        job: The job.
        fault: What went wrong; None if nothing did.
        interrupted: Whether the user interrupted it.
        signal: The number of a signal that arrived meanwhile, to this process or to its parent.
    """

    job: Job
    fault: str | None = None
    interrupted: bool = False
    signal: int | None = None


def received(outcomes: Iterable[JobOutcome]) -> int | None:
    """The number of the signal that arrived during some jobs; None if there was none."""
    return next((outcome.signal for outcome in outcomes if outcome.signal is not None), None)


def is_finished(folder: RunFolder, config: Config) -> bool:
    """Whether ``folder`` holds a finished training of ``config``."""
    return folder.ended() is not None and folder.history.is_file() and _is_of(folder, config)


def can_resume(folder: RunFolder, config: Config) -> bool:
    """Whether ``folder`` holds an interrupted training of ``config`` whose state was saved."""
    return folder.ended() is None and folder.state.is_file() and _is_of(folder, config)


def _is_of(folder: RunFolder, config: Config) -> bool:
    try:
        return config_digest(load_config(folder.config, import_plugins=False)) == config_digest(config)
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def never() -> None:
    """No reason to stop."""


def train_job(job: Job, stepped: Stepped, stop_reason: Callable[[], str | None] = never) -> JobOutcome:
    """Train ``job`` in this process; an interrupted training is resumed if its state was saved.

    Anything else in its folder is moved aside, never deleted. An error becomes part of the outcome, so that the other
    jobs continue.

    Args:
        job: The job.
        stepped: Is called after each step.
        stop_reason: Is called before each step; a reason stops the training there.
    """
    from dpmodel.runs.train import train_from_config

    source = f"{job.label} (as solved)"
    folder, watcher = RunFolder(Path(job.directory)), _StepReporter(job, stepped, stop_reason)
    try:
        config = checked_config(read_yaml(job.settings, source), source)
        _await_orphan(folder)
        if is_finished(folder, config):  # by the worker of a killed process, after the job was made
            return JobOutcome(job)
        resume = can_resume(folder, config)
        result = train_from_config(config, folder.path, force=not resume, resume=resume, callbacks=[watcher])
    except KeyboardInterrupt:
        watcher.withdraw()
        return JobOutcome(job, interrupted=True)
    except Exception as error:
        watcher.withdraw()
        return JobOutcome(job, f"{type(error).__name__}: {error}{_place(error)}")
    return JobOutcome(job, interrupted=result.interrupted or folder.ended() is None, signal=result.signal)


def _await_orphan(folder: RunFolder) -> None:
    """Wait until the worker of a killed process has ended; if a process still holds the folder then, refuse."""
    deadline = time.monotonic() + ORPHAN_SECONDS
    while folder.path.is_dir() and time.monotonic() < deadline:
        try:
            with FolderLock(folder.path):
                return
        except ConfigError:
            time.sleep(0.1)


def _place(error: Exception) -> str:
    """Where an unexpected error was raised: in the user's code, or in a bug of this library."""
    if isinstance(error, (DPModelError, OSError)):
        return ""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f" ({frame.filename}, line {frame.lineno})"


class _StepReporter(Silence):
    """Marks the run as begun, reports each step, stops the training on request, and silences it."""

    def __init__(self, job: Job, stepped: Stepped, stop_reason: Callable[[], str | None]) -> None:
        self.job = job
        self.stepped = stepped
        self.stop_reason = stop_reason
        self._mark = BegunMark(Path(job.begun))
        self._journal: ReleaseJournal | None = None

    def on_train_step_begin(self, run: Run) -> None:
        """Stop before this step if there is a reason; leave a mark before the first one."""
        reason = self.stop_reason()
        if reason is not None:
            run.stop(reason)
        elif self._journal is None:
            self._journal = run.journals[0]
            self._mark.add(self._journal)

    def on_train_step_end(self, run: Run) -> None:
        """Report the step."""
        self.stepped(self.job.number, run.step)

    def withdraw(self) -> None:
        """Remove the mark of a training that failed before its first release; its folder is removed too."""
        if self._journal is not None:
            self._mark.withdraw(self._journal)
