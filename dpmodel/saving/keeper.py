"""Saves the state of a training, so that an interrupted training can be resumed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dpmodel.saving.form import restoring
from dpmodel.saving.lock import FolderLock
from dpmodel.saving.record import DEFAULT_EVERY_N_STEPS, ReleaseRecord
from dpmodel.saving.state import StateWriter, TrainingState, charge_lost, check_state, read_state, run_settings
from monitors.errors import CheckpointError
from monitors.journal import ReleaseJournal
from monitors.ledger import VOID, Ledger

if TYPE_CHECKING:
    from dpmodel.callbacks.base import CallbackList
    from dpmodel.training.loop import TrainingLoop
    from dpmodel.training.run import Run


class StateKeeper(ReleaseRecord):
    """Saves a training every few steps, and lets a new process resume it.

    Guarantees. A resumed training equals the uninterrupted one: bit for bit with seeds for noise and sampling (examples
    fetched in this process); without seeds the noise is fresh and secret, and the planned ledger is ``ledger.kept``.

    Epsilon never falls. The journal announces each block of steps before it is released (see ``ReleaseRecord``). Steps
    that a killed process had begun and not saved are charged in full on resuming: they are rows of the ledger, marked
    as lost (``ledger.lost``), and count in every epsilon from then on, although the model contains nothing of them. A
    limit on epsilon may therefore end a resumed training earlier. Files that contradict each other are refused (see
    ``RunFolder.read_ledger``).

    One process at a time holds the folder. The state contains the training losses, which are not private.

    Args:
        directory: Folder of state, journal and ledger.
        every_n_steps: Steps between two saves, at least 1: a killed process loses at most this many.
        resume: Resume the training in the folder.
        settings: Further settings by name, which a resumed training must share.
        lock: The folder's lock, if the caller already holds it.

    Raises:
        ValueError: ``every_n_steps`` is not an integer of at least 1.

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
        resuming at step 4 of 8; 4 steps after it were released and lost: they are charged
        >>> resumed.ledger.total, resumed.ledger.lost.total
        (12, 4)
    """

    saves_state = True

    def __init__(
        self,
        directory: str | os.PathLike[str],
        every_n_steps: int = DEFAULT_EVERY_N_STEPS,
        *,
        resume: bool = False,
        settings: Mapping[str, Any] | None = None,
        lock: FolderLock | None = None,
    ) -> None:
        super().__init__(directory, every_n_steps, lock=lock)
        self.resume = resume
        self.settings = dict(settings or {})

    def _reset(self) -> None:
        super()._reset()
        self._writer: StateWriter | None = None
        self._saved: int | None = None
        self._lost = 0
        self._stated = Ledger()

    def load(self) -> TrainingState | None:
        """Read the folder, which must be held; return the state to resume from, or None for a new training."""
        if self.resume and self._journal is None:
            self._read()
        elif not self.resume:
            super().load()
        return self.state

    def restore(self, run: Run, listeners: CallbackList) -> None:
        """Check the state that ``run`` is resumed from, restore the run, and charge what was lost.

        Raises:
            CheckpointError: The state belongs to a different training; nothing was changed.
        """
        settings = {**self.settings, **run_settings(run)}
        if self.state is not None:
            check_state(self.state, run, listeners, settings)
            self.state.checkpoint.restore(run.network)
            run.ledger.extend(self.state.ledger)
            with restoring(self.state.path):
                run.load_state_dict(self.state.run)
            announced = self.journal.announced(self.state.journal_head)
            limits = [entry.within_limits for entry in listeners if hasattr(entry, "within_limits")]
            self._lost = charge_lost(run, announced, self._stated, limits)
        self._writer = StateWriter(self.folder.state, settings)
        super().restore(run, listeners)  # from here on, what is recorded is new

    def between_steps(self, loop: TrainingLoop, *, rest: bool = False) -> None:
        """Restore or save the training at its beginning; save it at the end of each block, and at rest."""
        begins, run, state = not self._begun, loop.run, self.state
        if begins and state is not None:
            # Before anything is written: a state that does not fit leaves the folder as it was.
            with restoring(state.path):
                loop.load_state_dict(state.loop)
            # After the schedules, which set the first learning rate when the training begins.
            state.checkpoint.restore(run.network, run.optimizer)
        super().between_steps(loop, rest=rest)
        if begins and state is None:
            self._save_first(loop)
        elif begins and state is not None:
            loop.step.guard.protected(state.step)
            self._saved, self.state = state.step, None
            run.say(_resuming(state, self._lost))
        elif self._saved != run.step and (rest or run.step >= self._end):
            self._save(loop)

    def _read(self) -> None:
        folder = self.folder
        if not folder.state.is_file():
            raise CheckpointError(
                f"there is nothing to resume in {folder.path}: {folder.state.name} is missing. A training saves its "
                "state while it runs, unless output.save_every_steps is null. To train from the start, resume nothing: "
                "use a new folder, or --force in place of --resume, which moves this one aside"
            )
        state = read_state(folder.state)
        try:
            self._stated = folder.read_ledger()
        except CheckpointError as error:
            raise CheckpointError(
                f"{error}. The training cannot be resumed; train in a different folder and keep this one"
            ) from error
        self._journal = journal = ReleaseJournal(folder.journal, folder=self.lock.handle())
        violations = (*journal.violations, *state.ledger.violations, *self._stated.violations)
        if violations:
            raise CheckpointError(
                f"the training in {folder.path} cannot be resumed: {VOID}: {violations[0]}. Train in a different "
                "folder, from fresh weights, and keep this one: its releases count for the data"
            )
        self.state = state

    def _save_first(self, loop: TrainingLoop) -> None:
        try:
            self._save(loop)
        except CheckpointError as error:
            raise CheckpointError(
                f"{error}. Train without saving a state: output.save_every_steps: null, or no keeper"
            ) from error

    def _save(self, loop: TrainingLoop) -> None:
        assert self._writer is not None
        self._writer.write(loop, self.journal.head, folder=self.lock.handle())
        self._saved, self._stale = loop.run.step, True


def _resuming(state: TrainingState, lost: int) -> str:
    text = f"resuming at step {state.step} of {state.run['planned_steps']}"
    return text + (f"; {lost} steps after it were released and lost: they are charged" if lost else "")
