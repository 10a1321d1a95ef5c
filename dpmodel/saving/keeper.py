"""Keeps the state of a training on the disk, so that a training that breaks off can go on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpmodel.runs.folder import RunFolder
from dpmodel.saving.journal import ReleaseJournal
from dpmodel.saving.lock import FolderLock
from dpmodel.saving.resume import (
    charge_lost,
    check_state,
    restore_loop,
    restore_model,
    restore_randomness,
    run_settings,
)
from dpmodel.saving.state import StateWriter, TrainingState, read_state
from monitors import checks
from monitors.errors import CheckpointError
from monitors.ledger import VOID

if TYPE_CHECKING:
    from dpmodel.callbacks.base import CallbackList
    from dpmodel.training.loop import TrainingLoop
    from dpmodel.training.run import Run
    from monitors.events import PrivacyEvent

DEFAULT_EVERY_N_STEPS = 100


class StateKeeper:
    """Saves a training every so many steps, and lets a new process go on from there.

    Guarantees. A resumed training is the uninterrupted one: with seeds for noise and sampling bit for bit (examples
    fetched in this process), and without seeds with fresh secret noise, its planned ledger being ``ledger.kept``.

    Epsilon never falls. Before each block of steps a line on the disk announces what the block releases. Steps that a
    killed process had begun and that were not saved are charged in full on resuming: they are rows of the ledger like
    all others, marked as lost (``ledger.lost``), and every epsilon has them in it from there on, though nothing of them
    is in the model. A limit on epsilon may therefore end a resumed training earlier.

    One process at a time holds the folder. The state has the training losses in it, which are not private. Events that
    a callback itself records on the ledger are kept in the state, but those after the last save are not known to the
    journal.

    Args:
        directory: Folder of the state and the journal.
        every_n_steps: Steps of a block, at least 1: at most so many are lost.
        resume: Go on with the training that is there.
        settings: Further settings by name, which a resumed training must share.
        lock: The folder's lock, where the caller holds it already.

    Raises:
        ValueError: ``every_n_steps`` is no whole number of at least 1.

    Example:
        >>> import tempfile, torch
        >>> from dpmodel import DPModel, NoiseMechanismsFactory, poisson_loader
        >>> def build():
        ...     network = torch.nn.Linear(2, 2)
        ...     optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        ...     noise = NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=1.0)
        ...     return DPModel(network, torch.nn.CrossEntropyLoss(), optimizer, noise_mech=noise)
        >>> data = torch.utils.data.TensorDataset(torch.zeros(20, 2), torch.zeros(20, dtype=torch.int64))
        >>> loader, folder = poisson_loader(data, batch_size=5), tempfile.mkdtemp()
        >>> class PowerCut:
        ...     def on_train_step_end(self, run):
        ...         if run.step == 6:
        ...             raise KeyboardInterrupt
        >>> try:
        ...     build().fit(loader, epochs=2, callbacks=[PowerCut()], keeper=StateKeeper(folder, every_n_steps=4))
        ... except KeyboardInterrupt:
        ...     pass
        >>> resumed = build()
        >>> _ = resumed.fit(loader, epochs=2, keeper=StateKeeper(folder, every_n_steps=4, resume=True))
        going on from step 4 of 8; 4 steps after it were released and lost: they are charged
        >>> resumed.ledger.total, resumed.ledger.lost.total
        (12, 4)
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        every_n_steps: int = DEFAULT_EVERY_N_STEPS,
        *,
        resume: bool = False,
        settings: Mapping[str, Any] | None = None,
        lock: FolderLock | None = None,
    ) -> None:
        checks.positive_int(every_n_steps=every_n_steps)
        self.folder = RunFolder(Path(directory))
        self.every_n_steps = every_n_steps
        self.resume = resume
        self.settings = dict(settings or {})
        self.state: TrainingState | None = None
        self._lock = lock
        self._writer: StateWriter | None = None
        self._journal: ReleaseJournal | None = None
        self._announced = 0
        self._events: list[PrivacyEvent] = []
        self._saved: int | None = None
        self._lost = 0

    @contextmanager
    def open(self) -> Iterator[None]:
        """Hold the folder, and read what is in it.

        Raises:
            ConfigError: Another process holds the folder.
            CheckpointError: There is nothing to resume, it is damaged, or something is there and ``resume`` is not set.
        """
        lock = FolderLock(self.folder.path) if self._lock is None else None
        if lock is not None:
            lock.acquire()
        try:
            self.load()
            yield
        finally:
            # What was read is of this training alone: the next one, of whatever model, must find its own in the folder.
            self._journal = self.state = None
            if lock is not None:
                lock.release()

    def load(self) -> TrainingState | None:
        """Read what is in the folder, which must be held; the state that is gone on from, None for a new training.

        Raises:
            CheckpointError: As of ``open``.
        """
        if self._journal is None:
            self._read()
        return self.state

    def admit(self, run: Run, listeners: CallbackList) -> None:
        """Check and restore the model of ``run`` where it is resumed, and charge what was lost.

        Raises:
            CheckpointError: The state is of another training; nothing was changed.
        """
        settings = {**self.settings, **run_settings(run)}
        journal, state = self._opened(), self.state
        if state is not None:
            check_state(state, run, listeners, settings)
            restore_model(state, run)
            journal.resume(state.step)
            self._lost = charge_lost(run, journal.lost(since=state.journal_head))
        self._writer = StateWriter(self.folder.state, settings)
        self._announced = run.step

    def begin(self, loop: TrainingLoop) -> None:
        """Restore what the callbacks have set when the training began; save a training that is new.

        Raises:
            CheckpointError: Something in the state cannot be saved; nothing was released yet.
        """
        if self.state is None:
            try:
                self._save(loop)
            except CheckpointError as error:
                raise CheckpointError(
                    f"{error}. Train without keeping a state: output.save_every_steps: null, or no keeper"
                ) from error
        else:
            restore_loop(self.state, loop)
            self._saved = self.state.step
            loop.run.say(_going_on(self.state, self._lost))

    def before_steps(self, loop: TrainingLoop) -> None:
        """Restore torch's generators when the first steps of a resumed training are about to be taken."""
        if self.state is not None:
            restore_randomness(self.state, loop.device)
            self.state = None

    def before_step(self, loop: TrainingLoop) -> None:
        """Announce a block before its first step, and what is left of it anew where a callback changed the schedule."""
        run = loop.run
        if run.step >= self._announced:
            self._announce(run, min(run.step + self.every_n_steps, run.planned_steps))
        elif run.event(run.step) != self._events[run.step - self._announced]:
            self._announce(run, self._announced)

    def after_step(self, loop: TrainingLoop) -> None:
        """Save at the end of a block."""
        if loop.run.step >= self._announced:
            self._save(loop)

    def rest(self, loop: TrainingLoop) -> None:
        """Save where the training ends or is stopped between two steps; nothing is lost then."""
        if self._saved != loop.run.step:
            self._save(loop)
        if self._announced != loop.run.step:
            self._opened().rest(loop.run.step)
            self._announced = loop.run.step

    def violated(self, run: Run) -> None:
        """Write a violation of the claim to the disk at once; the training is not resumed then."""
        self._opened().violate(run.step, run.ledger.violations[-1])

    def discard(self) -> None:
        """Remove state and journal of a training whose results are written."""
        self.folder.state.unlink(missing_ok=True)
        self.folder.journal.unlink(missing_ok=True)

    def _read(self) -> None:
        folder = self.folder
        self._journal = journal = ReleaseJournal(folder.journal)
        if not self.resume:
            if folder.state.exists() or len(journal):
                raise CheckpointError(
                    f"{folder.path} holds the state of another training already; go on with it by resume=True, or "
                    "choose another folder. Keep this one: its releases count for the data"
                )
            return
        if not folder.state.is_file():
            raise CheckpointError(
                f"there is nothing to resume in {folder.path}: {folder.state.name} is not there. A training keeps its "
                "state while it is under way, unless output.save_every_steps is null"
            )
        self.state = read_state(folder.state)
        if not journal.follows(self.state.journal_head):
            raise CheckpointError(
                f"{folder.journal} is missing, or older than {folder.state}: how many steps were lost cannot be stated."
                " Restore the original file, or train in another folder and keep this one"
            )
        violations = (*journal.violations, *self.state.ledger.violations)
        if violations:
            raise CheckpointError(
                f"the training in {folder.path} is not resumed: {VOID}: {violations[0]}. Train in another folder, from "
                "fresh weights, and keep this one: its releases count for the data"
            )

    def _announce(self, run: Run, end: int) -> None:
        self._events = [run.event(step) for step in range(run.step, end)]
        self._opened().begin_block(run.step, self._events)
        self._announced = end

    def _save(self, loop: TrainingLoop) -> None:
        assert self._writer is not None
        self._writer.write(loop, self._opened().head)
        self._saved = loop.run.step

    def _opened(self) -> ReleaseJournal:
        assert self._journal is not None
        return self._journal


def _going_on(state: TrainingState, lost: int) -> str:
    text = f"going on from step {state.step} of {state.planned_steps}"
    return text + (f"; {lost} steps after it were released and lost: they are charged" if lost else "")
