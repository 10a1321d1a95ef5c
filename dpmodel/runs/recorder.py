"""Writes a training into its run folder while it goes on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from dpmodel.callbacks.base import Callback
from dpmodel.config.sections import OutputSection
from dpmodel.runs.folder import RESERVED_NOTE as RESERVED_NOTE
from dpmodel.runs.folder import RunFolder
from dpmodel.runs.report import PrivacyReport, ReportSubject, make_report
from dpmodel.saving.checkpoint import save_checkpoint
from dpmodel.saving.lock import FolderLock
from monitors.errors import ConfigError

if TYPE_CHECKING:
    from dpmodel.saving.keeper import StateKeeper
    from dpmodel.training.run import Run


class RunRecorder(Callback):
    """Keeps the files of a run folder up to date.

    The ledger on disk is never behind the training: before an epoch begins, all its steps are written as if they had
    been released; when it ends, what was really released replaces that. A training that is killed in between is charged
    for the whole epoch; when it is resumed, for the steps that were lost beside the planned ones.

    Args:
        folder: Where to write.
        output: What to write besides ledger and report. Default: all of it.
        subject: The training as its report describes it. Default: as the run describes itself.
    """

    def __init__(
        self, folder: RunFolder, output: OutputSection | None = None, subject: ReportSubject | None = None
    ) -> None:
        self.folder = folder
        self.output = OutputSection() if output is None else output
        self.subject = subject
        self.run: Run | None = None

    def on_train_begin(self, run: Run) -> None:
        """Write the ledger, with the first epoch charged in advance."""
        self.run = run
        run.on_violation(lambda: run.ledger.save(self.folder.ledger))
        self._reserve(run)

    def on_train_epoch_begin(self, run: Run) -> None:
        """Charge the coming epoch on disk."""
        self._reserve(run)

    def on_train_epoch_end(self, run: Run) -> None:
        """Write what was released, the history and the weights."""
        run.ledger.save(self.folder.ledger)
        self._write_progress(run)

    def on_train_end(self, run: Run) -> None:
        """Write what was released, also after a failure."""
        run.ledger.save(self.folder.ledger)

    def finish(self, status: str) -> PrivacyReport | None:
        """Write everything once more, with the report; None where the training never began.

        Args:
            status: ``"finished"``, or why the training ended early.
        """
        run = self.run
        if run is None:
            return None
        run.ledger.save(self.folder.ledger)
        subject = run.subject if self.subject is None else self.subject
        report = make_report(subject, run.ledger, run.step, status=status, verified=run.verification)
        report.save(self.folder.path)
        self._write_progress(run)
        if self.output.curve and len(run.history):
            run.history.plot(self.folder.curve, ledger=run.ledger, accountant=run.accountant)
        return report

    def _reserve(self, run: Run) -> None:
        reserved = run.ledger.copy()
        for step in range(run.step, min(run.step + run.steps_per_epoch, run.planned_steps)):
            reserved.record(run.event(step))
        reserved.add_note(RESERVED_NOTE)
        reserved.save(self.folder.ledger)

    def _write_progress(self, run: Run) -> None:
        if self.output.history:
            run.history.to_csv(self.folder.history)
            if len(run.history.norm_bounds) > 1:
                run.history.norm_bounds_to_csv(self.folder.norm_bounds)
        if self.output.checkpoint:
            save_checkpoint(self.folder.checkpoint, run)


@contextmanager
def recording(output: str | os.PathLike[str] | None, keeper: StateKeeper | None) -> Iterator[list[RunRecorder]]:
    """Write the training inside the block into the run folder ``output``.

    Args:
        output: The folder; None writes nothing.
        keeper: The keeper of the training's state, which may use the same folder.

    Yields:
        The recorder, which must be the last callback, so that one that refuses to begin finds nothing written; an
        empty list if the folder does not exist.

    Raises:
        ConfigError: The folder is in use; nothing is overwritten.
    """
    if output is None:
        yield []
        return
    folder = RunFolder(Path(output))
    shared = keeper is not None and keeper.folder.path.resolve() == folder.path.resolve()
    resumed = shared and keeper is not None and keeper.resume
    if folder.in_use and not resumed:
        raise ConfigError(
            f"the run folder {folder.path} is not empty. Choose another one with output=, and keep this one: its "
            "ledger counts for the data"
        )
    recorder = RunRecorder(folder)
    # A keeper of the same folder takes the lock itself.
    with nullcontext() if shared else FolderLock(folder.path):
        try:
            yield [recorder]
        except BaseException as error:
            if recorder.run is not None:
                recorder.finish(recorder.run.status(error))
            raise
        assert recorder.run is not None
        recorder.finish(recorder.run.status())
