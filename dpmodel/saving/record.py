"""The write-ahead record of a training: what it is about to release is on the disk first."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpmodel.runs.folder import RunFolder
from dpmodel.saving.lock import FolderLock
from dpmodel.saving.marks import TrainingMark
from monitors import checks
from monitors.atomic import read_without_links
from monitors.errors import CheckpointError
from monitors.events import ViolationEvent
from monitors.journal import MOST_ANNOUNCED, ReleaseJournal

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

    1. ``begun`` in the journal; the first one gives the training its ID. After a kill here ``ledger.json`` is missing
       (nothing was released yet) or is that of an earlier process, with all that it had announced.
    2. ``ledger.json``: all releases so far, and the head of the journal. From here on readers add what the journal
       announced after that head. The rename is the commit: before it, the older file with its older head is in force.
    3. ``block`` in the journal, then the steps of the block. After a kill here the whole block is charged.
    4. ``ledger.json`` again after an epoch (a long one: after further growth), or the training state (see
       ``StateKeeper``) after a block. Each names the head, so blocks before it no longer count beyond the file; the
       rest of a block is announced again (3).
    5. ``ledger.json`` as complete, when nothing more will be released and the results are written.
    6. ``ended`` in the journal, with the digest of that ledger. Without this line, the results may be missing.

    After each line of the journal, a mark outside the folder follows (see ``TrainingMark``), so that a folder that is
    restored from an older copy is noticed. A release that is not a step, such as the answer to a query of a callback,
    gets a line of its own.

    Args:
        directory: Folder of the journal and the ledger.
        every_n_steps: Steps of a block, at least 1: a killed process is charged for at most this many it did not take.
            Near a limit on epsilon, blocks are smaller: a block is announced only if it fits into every limit twice,
            once lost and once repeated, down to blocks of one step. So limits hold over any number of kills, and a kill
            near a limit loses little.
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
        # Of the last training: they outlive its end, when the caller decides whether to keep the folder.
        self._found = 0
        self._announced = False
        self._reset()

    def _reset(self) -> None:
        # A record belongs to one training; the next training, of any model, must read its own from the folder.
        self.state = None
        self._opened: FolderLock | None = None
        self._journal: ReleaseJournal | None = None
        self._run: Run | None = None  # once something was written about it
        self._entered = False  # the journal has a line of this process
        self._begun = False  # the first step may come
        self._events: list[PrivacyEvent] = []  # announced, up to step `_end`
        self._block = min(self.every_n_steps, MOST_ANNOUNCED)  # halved near a limit
        self._end = 0
        self._written: tuple[int, Any] = (0, None)  # rows of the ledger on the disk, and what else it states
        self._stale = False  # a file has named the head within the block
        self._next: int | None = None  # the step that is recorded next, once its callbacks have been called
        self._config: str | None = None

    @contextmanager
    def open(self) -> Iterator[None]:
        """Hold the folder for one training, and complete its ledger at the end.

        Raises:
            ConfigError: Another process holds the folder.
            CheckpointError: The folder holds a different training, or nothing to resume, or a damaged file.
        """
        opened = nullcontext(self._lock) if self._lock is not None else FolderLock(self.folder.path)
        with ExitStack() as self._held:
            self._opened = self._held.enter_context(opened)
            self._held.callback(self._reset)
            try:
                self.folder.refuse_links()
                self.load()
                yield
                self._complete()
            except BaseException as error:
                with suppress(OSError, CheckpointError):  # the first failure is the one to report
                    self._complete(error)
                raise

    def released(self, run: Run) -> bool:
        """Whether ``run``, or the training that it resumes, may have released anything."""
        return self.resume or self._announced or run.ledger.total != self._found

    @property
    def lock(self) -> FolderLock:
        """The lock of the folder, which is open."""
        lock = self._lock if self._opened is None else self._opened
        assert lock is not None
        return lock

    def load(self) -> TrainingState | None:
        """Read the folder, which must be held; return the state to resume from, or None for a new training.

        Raises:
            CheckpointError: As for ``open``.
        """
        if self._journal is None:
            self._require_unused()
            self._journal = ReleaseJournal(self.folder.journal, folder=self.lock.handle())
        return None

    def restore(self, run: Run, listeners: CallbackList) -> None:
        """Follow ``run`` from before it is checked and begins: any callback may release something from then on."""
        del listeners
        self._announced, self._found = False, run.ledger.total
        run.journals.append(self.journal)
        run.on_violation(lambda: self._violated(run))
        self._held.enter_context(run.ledger.announcing(partial(self._announce_other, run)))

    def before_release(self, loop: TrainingLoop) -> None:
        """Announce a block before its first step, and the rest of it again after a change of the schedule."""
        run = loop.run
        self.lock.handle()  # without the folder, the record of this release would be lost
        if run.step >= self._end:
            self._end = min(run.step + self._block, run.planned_steps)
            self._announce(loop)
        elif self._stale or run.event(run.step) != self._events[run.step - self._end]:
            self._announce(loop)
        self._next = run.step

    def between_steps(self, loop: TrainingLoop, *, rest: bool = False) -> None:
        """Called before the first step, after each step, and with ``rest`` when no step follows."""
        del rest
        if not self._begun:
            self._begin(loop.run)
            self._begun, self._end = True, loop.run.step

    def on_train_epoch_end(self, run: Run) -> None:
        """Write the ledger, with the notes and the events that callbacks have recorded.

        A long ledger that holds nothing but further steps is written after each growth by a half only, because readers
        add what the journal has announced since: written after each epoch, it would take longer and longer.
        """
        rows, beside = self._written
        if rows > _SHORT and len(run.ledger) <= 1.5 * rows and beside == _beside_steps(run):
            return
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

    def _config_digest(self) -> str | None:
        if self.resume:  # only the process that began the training knows that it wrote the file
            mark = None if self.journal.training is None else TrainingMark.of(self.journal.training)
            return None if mark is None else mark.config
        config = self.folder.config
        if not self.lock.holds(config):
            return None
        return hashlib.sha256(read_without_links(config, folder=self.lock.handle())).hexdigest()

    def _begin(self, run: Run) -> None:
        """State that this process begins, unless a release before its first step has done so."""
        if self._entered:
            return
        self._entered, self._run = True, run
        self._config = self._config_digest()
        self.journal.begin(run.step)
        self._mark()
        # They state an epsilon without the steps that come now.
        self.lock.remove(self.folder.report, self.folder.statement, self.folder.curve)
        self._write_ledger(run)

    def _announce(self, loop: TrainingLoop) -> None:
        run, limits = loop.run, [entry.within_limits for entry in loop.listeners if hasattr(entry, "within_limits")]
        self._events = [run.event(step) for step in range(run.step, self._end)]
        # The monitors have allowed one step. More are charged if the process is killed, and are then repeated.
        while len(self._events) > 1 and not all(within(run, _twice(self._events)) for within in limits):
            self._block = len(self._events) // 2
            del self._events[self._block :]
        self._end = run.step + len(self._events)
        self.journal.announce(run.step, self._events)
        self._mark()
        self._announced, self._stale = True, False

    def _announce_other(self, run: Run, event: PrivacyEvent, count: int) -> None:
        """Announce a release that is about to be recorded, unless it is the step that was announced."""
        step = run.step
        # What a callback releases may equal the step, which may be announced again in its place.
        if self._next == step and not self._stale and count == 1 and event == self._events[step - self._end]:
            self._next = None
            return
        if isinstance(event, ViolationEvent):
            with suppress(OSError, CheckpointError):  # the claim is void, whether or not this can be written
                self._void(step, event.reason)
            return
        self._begin(run)
        self.journal.record(event, count)
        self._mark()
        self._announced = True

    def _mark(self) -> None:
        journal = self.journal
        if journal.training is not None:
            TrainingMark(journal.training, len(journal), journal.head, self._config).save()

    def _write_ledger(self, run: Run) -> None:
        self._run, self._stale = run, True
        self._written = len(run.ledger), _beside_steps(run)
        run.ledger.save(self.folder.ledger, journal=self.journal.head, folder=self.lock.handle())

    def _violated(self, run: Run) -> None:
        self._void(run.step, run.ledger.violations[-1])
        self._write_ledger(run)

    def _void(self, step: int, reason: str) -> None:
        # The journal first: a state is not resumed if the journal names a violation.
        if reason not in self.journal.violations:
            self.journal.violate(step, reason)
            self._mark()

    def _complete(self, failure: BaseException | None = None) -> None:
        """Complete ledger and journal; after a failure before the first release, leave the folder as it was found."""
        run = self._run
        if run is None:
            return
        if failure is not None and not self.released(run):
            self.lock.remove(self.folder.state, self.folder.journal, self.folder.ledger)
            return
        run.ledger.save(self.folder.ledger, journal=self.journal.head, complete=True, folder=self.lock.handle())
        self.journal.finish(run.status(failure), run.ledger.digest())
        self._mark()


def _twice(events: list[PrivacyEvent]) -> list[tuple[PrivacyEvent, int]]:
    return [(event, 2 * len(list(same))) for event, same in groupby(events)]


def _beside_steps(run: Run) -> tuple[int, tuple[str, ...]]:
    """What the ledger states beside the steps of the run: the number of other releases, and the notes."""
    return run.ledger.total - run.step, run.ledger.notes
