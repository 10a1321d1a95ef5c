"""A job: one training, ready to be sent to a worker process; here, those of comparisons and searches."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from dpmodel.callbacks.silence import Silence
from dpmodel.compare.begun import BegunMark
from dpmodel.compare.identity import config_digest
from dpmodel.compare.plan import Plan
from dpmodel.config import load_config
from dpmodel.config.marked_yaml import read_yaml
from dpmodel.config.reader import checked_config
from dpmodel.runs.folder import RunFolder
from dpmodel.saving.lock import FolderInUseError, FolderLock
from monitors.errors import DPModelError
from monitors.ledger import Ledger

if TYPE_CHECKING:
    from dpmodel.config.schema import Config
    from dpmodel.runs.build import Training
    from dpmodel.training.run import Run
    from monitors.journal import ReleaseJournal

#: Called with (job number, steps done) after each step.
Stepped = Callable[[int, int], None]


class PooledJob(Protocol):
    """What a pool of processes runs: plain values that can be sent to a different process."""

    @property
    def number(self) -> int:
        """Position in the list of jobs."""

    @property
    def steps(self) -> int:
        """Number of steps."""

    @property
    def directory(self) -> str:
        """The folder that a process holds while it does this job."""

    @property
    def label(self) -> str:
        """What it trains, for messages."""

    def train(self, stepped: Stepped, stop_reason: Callable[[], str | None]) -> JobOutcome:
        """Do the job in this process; an error becomes part of the outcome."""


@dataclass(frozen=True)
class Job:
    """One training to be done, in plain values that can be sent to a different process.

    Args:
        number: Position in the list of jobs.
        variant: Name of the variant.
        seed: Seed of the initial weights.
        steps: Number of steps.
        directory: Run folder.
        begun: Mark of the trainings that began in this folder; see ``BegunMark``.
        settings: Configuration as YAML.
        plan: What the process that leads the comparison must still offer when this job begins; None for its own jobs.
    """

    number: int
    variant: str
    seed: int
    steps: int
    directory: str
    begun: BegunMark
    settings: str = field(repr=False)
    plan: Plan | None = field(default=None, repr=False)

    @property
    def label(self) -> str:
        """Variant and seed, for messages."""
        return f"{self.variant}, seed {self.seed}"

    def train(self, stepped: Stepped, stop_reason: Callable[[], str | None]) -> JobOutcome:
        """Train it in this process; see ``train_job``."""
        return train_job(self, stepped, stop_reason)


@dataclass(frozen=True)
class JobOutcome:
    """How a job ended.

    Args:
        job: The job.
        fault: What went wrong; None if nothing did.
        interrupted: Whether the user interrupted it.
        signal: The number of a signal that arrived meanwhile, to this process or to its parent.
        reused: Whether a different process had finished it after the job was made.
        held: Whether it was left to a different process: one that holds its folder, or one that now leads.
    """

    job: PooledJob
    fault: str | None = None
    interrupted: bool = False
    signal: int | None = None
    reused: bool = False
    held: bool = False

    @property
    def finished(self) -> bool:
        """Whether the training is finished."""
        return self.fault is None and not self.interrupted and not self.held


def received(outcomes: Iterable[JobOutcome]) -> int | None:
    """The number of the signal that arrived during some jobs; None if there was none."""
    return next((outcome.signal for outcome in outcomes if outcome.signal is not None), None)


class PooledRun:
    """What the outcomes of several jobs say together.

    Attributes:
        outcomes: How each job ended.
    """

    outcomes: tuple[JobOutcome, ...]

    @property
    def interrupted(self) -> bool:
        """Whether the user interrupted it."""
        return any(outcome.interrupted for outcome in self.outcomes)

    @property
    def signal(self) -> int | None:
        """The number of the signal that interrupted it, if one did."""
        return received(self.outcomes)

    @property
    def faults(self) -> tuple[JobOutcome, ...]:
        """Trainings that failed."""
        return tuple(outcome for outcome in self.outcomes if outcome.fault is not None)


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
    jobs continue. From the decision to the end, this process holds the folder: of all processes that have this job, on
    whichever machine, one trains it, and the others find it finished.

    Args:
        job: The job.
        stepped: Is called after each step.
        stop_reason: Is called before each step; a reason stops the training there.
    """
    watcher = _StepReporter(job, stepped, stop_reason)
    try:
        with FolderLock(job.directory) as lock:
            if lock.moved or (job.plan is not None and not job.plan.is_offered()):
                return JobOutcome(job, held=True)
            with watcher.withdrawing():
                return _train(job, watcher, lock)
    except KeyboardInterrupt:
        return JobOutcome(job, interrupted=True)
    except Exception as error:
        # Not that of a different folder, in the user's code: the job would be tried for ever.
        if isinstance(error, FolderInUseError) and error.path == Path(job.directory):
            return JobOutcome(job, held=True)
        return JobOutcome(job, fault_of(error))


def _train(job: Job, watcher: _StepReporter, lock: FolderLock) -> JobOutcome:
    from dpmodel.runs.train import train_from_config

    source, folder = f"{job.label} (as solved)", RunFolder(Path(job.directory))
    config = checked_config(read_yaml(job.settings, source), source)
    if is_finished(folder, config):
        return JobOutcome(job, reused=True)
    resume = can_resume(folder, config)
    result = train_from_config(
        config, folder.path, force=not resume, resume=resume, callbacks=[watcher], announce=watcher.plan, lock=lock
    )
    return JobOutcome(job, interrupted=result.interrupted or folder.ended() is None, signal=result.signal)


def fault_of(error: Exception) -> str:
    """An error in words, with the place of an unexpected one: in the user's code, or in a bug of this library."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, (DPModelError, OSError)):
        return text
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{text} ({frame.filename}, line {frame.lineno})"


class _StepReporter(Silence):
    """Marks the run as begun, reports each step, stops the training on request, and silences it."""

    def __init__(self, job: Job, stepped: Stepped, stop_reason: Callable[[], str | None]) -> None:
        self.job = job
        self.stepped = stepped
        self.stop_reason = stop_reason
        self._mark = job.begun
        self._planned = Ledger()
        self._journal: ReleaseJournal | None = None

    def plan(self, training: Training, folder: RunFolder) -> None:
        """Take note of what the training is going to release."""
        del folder
        self._planned = training.plan.ledger()

    def on_train_begin(self, run: Run) -> None:
        """Leave a mark before the first release."""
        super().on_train_begin(run)
        self._journal = run.journals[0]
        self._mark.add(self._journal, self._planned)

    def on_train_step_begin(self, run: Run) -> None:
        """Stop before this step if there is a reason."""
        reason = self.stop_reason()
        if reason is not None:
            run.stop(reason)

    def on_train_step_end(self, run: Run) -> None:
        """Report the step."""
        self.stepped(self.job.number, run.step)

    @contextmanager
    def withdrawing(self) -> Iterator[None]:
        """Remove the mark of a training that ends before its first release."""
        try:
            yield
        finally:
            if self._journal is not None:
                self._mark.withdraw(self._journal)
