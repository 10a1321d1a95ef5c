"""The write-ahead record of a training: what it is about to release is on the disk first."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dpmodel.runs.folder import RunFolder
from dpmodel.saving.lock import FolderLock
from dpmodel.saving.marks import TrainingMark
from monitors import checks
from monitors.errors import CheckpointError
from monitors.events import ViolationEvent
from monitors.journal import ReleaseJournal

if TYPE_CHECKING:
    from dpmodel.callbacks.base import CallbackList
    from dpmodel.saving.state import TrainingState
    from dpmodel.training.loop import TrainingLoop
    from dpmodel.training.run import Run
    from monitors.events import PrivacyEvent

DEFAULT_EVERY_N_STEPS = 100


class ReleaseRecord:
    """Keeps the ledger of a training on the disk, never behind what was released.

    Guarantee: whenever the process is killed, ``Ledger.load`` of ``ledger.json`` states at least what was released.

    The writes, in their order, each flushed to the disk before the next; all but 3 between two steps:

    1. ``begun`` in the journal; the first one gives the training its ID. After a kill here ``ledger.json`` is missing
       (nothing was released yet) or is that of an earlier process, with all that it had announced.
    2. ``ledger.json``: all releases so far, and the head of the journal. From here on readers add what the journal
       announced after that head. The rename is the commit: before it, the older file with its older head is in force.
    3. ``block`` in the journal, then the steps of the block. After a kill here the whole block is charged.
    4. ``ledger.json`` again after an epoch, or the training state (see ``StateKeeper``) after a block. Each names the
       head, so blocks before it no longer count beyond the file; the rest of a block is announced again (3).
    5. ``ledger.json`` as complete, when nothing more will be released and the results are written.
    6. ``ended`` in the journal, with the digest of that ledger. Without this line, the results may be missing.

    After each line of the journal, a mark outside the folder follows (see ``TrainingMark``), so that a folder that is
    restored from an older copy is noticed. A release that is not a step, such as the answer to a query of a callback,
    gets a line of its own.

    Args:
        directory: Folder of the journal and the ledger.
        every_n_steps: Steps of a block, at least 1: a killed process is charged for at most this many it did not take.
        lock: The folder's lock, if the caller already holds it.

    Raises:
        ValueError: ``every_n_steps`` is not an integer of at least 1.
    """

    #: Whether a resumed process can continue from what is kept.
    saves_state = False
    resume = False

    def __init__(
        self,
        directory: str | os.PathLike[str],
        every_n_steps: int = DEFAULT_EVERY_N_STEPS,
        *,
        lock: FolderLock | None = None,
    ) -> None:
        checks.positive_int(every_n_steps=every_n_steps)
        self.folder = RunFolder(Path(directory))
        self.every_n_steps = every_n_steps
        self.state: TrainingState | None = None
        self._lock = lock
        self._reset()

    def _reset(self) -> None:
        # A record belongs to one training; the next training, of any model, must read its own from the folder.
        self.state = None
        self._journal: ReleaseJournal | None = None
        self._run: Run | None = None  # once something was written about it
        self._begun = False
        self._events: list[PrivacyEvent] = []  # announced, up to step `_end`
        self._end = 0
        self._stale = False  # a file has named the head within the block
        self._recorded = -1  # number of the last step on the ledger
        self._config: str | None = None

    @contextmanager
    def open(self) -> Iterator[None]:
        """Hold the folder for one training, and complete its ledger at the end.

        Raises:
            ConfigError: Another process holds the folder.
            CheckpointError: The folder holds a different training, or nothing to resume, or a damaged file.
        """
        lock, failure = FolderLock(self.folder.path) if self._lock is None else None, None
        if lock is not None:
            lock.acquire()
        with ExitStack() as self._held:
            if lock is not None:
                self._held.callback(lock.release)
            self._held.callback(self._reset)
            try:
                self.load()
                yield
            except BaseException as error:
                failure = error
                raise
            finally:
                self._finish(failure)

    def load(self) -> TrainingState | None:
        """Read the folder, which must be held; return the state to resume from, or None for a new training.

        Raises:
            CheckpointError: As for ``open``.
        """
        if self._journal is None:
            self._require_unused()
            self._journal = ReleaseJournal(self.folder.journal)
        return None

    def restore(self, run: Run, listeners: CallbackList) -> None:
        """Follow ``run`` from before it is checked and begins."""
        del listeners
        run.journals.append(self.journal)
        run.on_violation(lambda: self._violated(run))

    def before_release(self, loop: TrainingLoop) -> None:
        """Announce a block before its first step, and the rest of it again after a change of the schedule."""
        run = loop.run
        if run.step >= self._end:
            self._end = min(run.step + self.every_n_steps, run.planned_steps)
            self._announce(run)
        elif self._stale or run.event(run.step) != self._events[run.step - self._end]:
            self._announce(run)

    def between_steps(self, loop: TrainingLoop, *, rest: bool = False) -> None:
        """Called before the first step, after each step, and with ``rest`` when no step follows."""
        del rest
        if not self._begun:
            run, config = loop.run, self.folder.config
            self._config = hashlib.sha256(config.read_bytes()).hexdigest() if config.is_file() else None
            self.journal.begin(run.step)
            self._mark()
            for stale in (self.folder.report, self.folder.statement, self.folder.curve):
                stale.unlink(missing_ok=True)  # they state an epsilon without the steps that come now
            self._write_ledger(run)
            self._begun, self._end = True, run.step
            self._held.enter_context(run.ledger.announcing(partial(self._announce_other, run)))

    def on_train_epoch_end(self, run: Run) -> None:
        """Write the ledger, with the notes and the events that callbacks have recorded."""
        self._write_ledger(run)

    @property
    def journal(self) -> ReleaseJournal:
        """The journal of the folder, which is open."""
        assert self._journal is not None
        return self._journal

    def _require_unused(self) -> None:
        folder = self.folder
        if folder.state.exists():
            raise CheckpointError(
                f"{folder.path} already holds the state of a training; resume it with resume=True, or choose a "
                "different folder. Keep this one: its releases count for the data"
            )
        if folder.ledger.exists() or folder.journal.exists():
            raise CheckpointError(
                f"{folder.path} already holds the ledger of a training; choose a different folder, and keep this one: "
                "its releases count for the data"
            )

    def _announce(self, run: Run) -> None:
        self._events = [run.event(step) for step in range(run.step, self._end)]
        self.journal.announce(run.step, self._events)
        self._mark()
        self._stale = False

    def _announce_other(self, run: Run, event: PrivacyEvent, count: int) -> None:
        """Announce a release that is about to be recorded, unless it is the step that was announced."""
        step = run.step
        announced = self._recorded < step < self._end and count == 1 and event == self._events[step - self._end]
        if announced:
            self._recorded = step
        elif not isinstance(event, ViolationEvent):  # has a line of its own
            self.journal.record(event, count)
            self._mark()

    def _mark(self) -> None:
        journal = self.journal
        if journal.training is not None:
            TrainingMark(journal.training, len(journal), journal.head, self._config).save()

    def _write_ledger(self, run: Run) -> None:
        self._run, self._stale = run, True
        run.ledger.save(self.folder.ledger, journal=self.journal.head)

    def _violated(self, run: Run) -> None:
        # The journal first: a state is not resumed if the journal names a violation.
        self.journal.violate(run.step, run.ledger.violations[-1])
        self._mark()
        self._write_ledger(run)

    def _finish(self, failure: BaseException | None) -> None:
        run = self._run
        if run is not None:
            run.ledger.save(self.folder.ledger, journal=self.journal.head, complete=True)
            self.journal.finish(run.status(failure), run.ledger.digest())
            self._mark()
