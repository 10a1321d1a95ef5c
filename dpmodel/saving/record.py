"""The write-ahead record of a training: what it is about to release is on the disk first."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpmodel.runs.folder import RunFolder
from dpmodel.saving.lock import FolderLock
from monitors import checks
from monitors.errors import CheckpointError
from monitors.journal import ReleaseJournal

if TYPE_CHECKING:
    from dpmodel.callbacks.base import CallbackList
    from dpmodel.saving.state import TrainingState
    from dpmodel.training.loop import TrainingLoop
    from dpmodel.training.run import Run
    from monitors.events import PrivacyEvent

DEFAULT_EVERY_N_STEPS = 100

#: A ledger of up to this many rows is written after each epoch.
_SHORT = 1000


class ReleaseRecord:
    """Keeps the ledger of a training on the disk, never behind what was released.

    Guarantee: whenever the process is killed, ``Ledger.load`` of ``ledger.json`` states at least what was released.

    The writes, in their order, each flushed to the disk before the next; all but 3 between two steps:

    1. ``begun`` in the journal. After a kill here ``ledger.json`` is missing (nothing was released yet) or is that of
       an earlier process, with all that it had announced.
    2. ``ledger.json``: all releases so far, and the head of the journal. From here on readers add what the journal
       announced after that head. The rename is the commit: before it, the older file with its older head is in force.
    3. ``block`` in the journal, then the steps of the block. After a kill here the whole block is charged.
    4. ``ledger.json`` again after an epoch, or the training state (see ``StateKeeper``) after a block. Each names the
       head, so blocks before it no longer count beyond the file; the rest of a block is announced again (3).
    5. ``ledger.json`` without a head, when nothing more will be released: it is complete, and the journal may go.

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
        self._written: tuple[int, Any] = (0, None)  # rows of the ledger on the disk, and what else it states
        self._stale = False  # a file has named the head within the block

    @contextmanager
    def open(self) -> Iterator[None]:
        """Hold the folder for one training, and complete its ledger at the end.

        Raises:
            ConfigError: Another process holds the folder.
            CheckpointError: The folder holds a different training, or nothing to resume, or a damaged file.
        """
        lock = FolderLock(self.folder.path) if self._lock is None else None
        if lock is not None:
            lock.acquire()
        try:
            self.load()
            yield
        finally:
            try:
                if self._run is not None:
                    self._run.ledger.save(self.folder.ledger)
                    if not self.folder.state.exists():
                        self.folder.journal.unlink(missing_ok=True)
            finally:
                self._reset()
                if lock is not None:
                    lock.release()

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
            self.journal.begin(loop.run.step)
            for stale in (self.folder.report, self.folder.statement):
                stale.unlink(missing_ok=True)  # they state an epsilon without the steps that come now
            self._write_ledger(loop.run)
            self._begun, self._end = True, loop.run.step

    def on_train_epoch_end(self, run: Run) -> None:
        """Write the ledger, with the notes and the events that callbacks have recorded.

        A long ledger that holds nothing but further steps is written after each growth by a tenth only, because readers
        add what the journal has announced since: written after each epoch, it would take longer and longer.
        """
        rows, beside = self._written
        if len(run.ledger) <= max(_SHORT, 1.1 * rows) and rows > _SHORT and beside == _beside_steps(run):
            return
        self._write_ledger(run)

    def discard(self) -> None:
        """Remove state and journal of a training whose results are written."""
        self.folder.state.unlink(missing_ok=True)
        self.folder.journal.unlink(missing_ok=True)

    @property
    def journal(self) -> ReleaseJournal:
        """The journal of the folder, which is open."""
        assert self._journal is not None
        return self._journal

    def _require_unused(self) -> None:
        folder = self.folder
        if folder.state.exists() or folder.journal.exists():
            raise CheckpointError(
                f"{folder.path} already holds the state of a training; resume it with resume=True, or choose a "
                "different folder. Keep this one: its releases count for the data"
            )
        if folder.ledger.exists():
            raise CheckpointError(
                f"{folder.path} already holds the ledger of a training; choose a different folder, and keep this one: "
                "its releases count for the data"
            )

    def _announce(self, run: Run) -> None:
        self._events = [run.event(step) for step in range(run.step, self._end)]
        self.journal.announce(run.step, self._events)
        self._stale = False

    def _write_ledger(self, run: Run) -> None:
        self._run, self._stale = run, True
        self._written = len(run.ledger), _beside_steps(run)
        run.ledger.save(self.folder.ledger, journal=self.journal.head)

    def _violated(self, run: Run) -> None:
        # The journal first: a state is not resumed if the journal names a violation.
        self.journal.violate(run.step, run.ledger.violations[-1])
        self._write_ledger(run)


def _beside_steps(run: Run) -> tuple[int, tuple[str, ...]]:
    """What the ledger states beside the steps of the run: the number of other releases, and the notes."""
    return run.ledger.total - run.step, run.ledger.notes
