"""Writes a training into its run folder while it runs."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from dpmodel.callbacks.base import Callback
from dpmodel.config.sections import OutputSection
from dpmodel.distributed.ranks import ALONE, Ranks
from dpmodel.figures.files import figure_bytes
from dpmodel.runs.folder import RunFolder
from dpmodel.runs.report import PrivacyReport, ReportSubject, make_report
from dpmodel.saving.checkpoint import checkpoint_content
from dpmodel.saving.record import ReleaseRecord
from dpmodel.saving.tensor_file import write_tensor_file
from dpmodel.training.history import NORM_BOUND_COLUMNS
from dpmodel.training.table_file import TableFile
from monitors.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from dpmodel.training.run import Run


class RunRecorder(Callback):
    """Keeps history, weights and report in a run folder up to date; the ledger is written by ``ReleaseRecord``.

    Args:
        record: The record of releases that holds the folder; None writes nothing, on all ranks but the first.
        output: What to write besides the report. Default: all of it.
        subject: The training as its report describes it. Default: as the run describes itself.
    """

    def __init__(
        self,
        record: ReleaseRecord | None,
        output: OutputSection | None = None,
        subject: ReportSubject | None = None,
    ) -> None:
        self.record = record
        if record is not None:
            self._history, self._norm_bounds = TableFile(record.folder.history), TableFile(record.folder.norm_bounds)
        self.output = OutputSection() if output is None else output
        self.subject = subject
        self.run: Run | None = None
        self.report: PrivacyReport | None = None

    def on_train_begin(self, run: Run) -> None:
        """Note the run; before this, there is nothing to report."""
        self.run = run

    def on_train_epoch_end(self, run: Run) -> None:
        """Write the history and the weights."""
        if self.record is not None:
            self._write_progress(run, self.record)

    def finish(self, status: str, *, failed: bool = False) -> PrivacyReport | None:
        """Write everything once more, with the report; None if the training failed before it released anything.

        Args:
            status: ``"finished"``, or why the training ended early.
            failed: Whether an exception ended it.
        """
        run, record = self.run, self.record
        if run is None or not run.begun or (failed and record is not None and not record.released(run)):
            return None
        subject = run.subject if self.subject is None else self.subject
        report = make_report(
            subject, run.ledger, run.step, status=status, verified=run.verification, metrics=run.metrics
        )
        self.report = dataclasses.replace(report, journals=run.heads)
        if record is not None:
            self._write_report(run, record)
        return self.report

    def _write_report(self, run: Run, record: ReleaseRecord) -> None:
        assert self.report is not None
        folder, lock = record.folder, record.lock
        for path, text in self.report.files(folder).items():
            if text is None:
                lock.remove(path)
            else:
                lock.write(path, text)
        self._write_progress(run, record)
        if self.output.curve and len(run.history):
            figure = run.history.plot(ledger=run.ledger, accountant=run.accountant)
            lock.write(folder.curve, figure_bytes(figure, folder.curve))
        if lock.moved:
            run.say(f"{folder.path} was moved while training; its files are in the moved folder")

    def _write_progress(self, run: Run, record: ReleaseRecord) -> None:
        if self.output.history:
            history, folder = run.history, record.lock.handle()
            self._history.update(history.columns, history.cells, folder=folder)
            if len(history.norm_bounds) > 1:
                self._norm_bounds.update(NORM_BOUND_COLUMNS, lambda first: history.norm_bounds[first:], folder=folder)
        if self.output.checkpoint:
            write_tensor_file(record.folder.checkpoint, *checkpoint_content(run), folder=record.lock.handle())


@contextmanager
def recording(
    output: str | os.PathLike[str] | RunRecorder | None, keeper: ReleaseRecord | None, ranks: Ranks = ALONE
) -> Iterator[tuple[list[RunRecorder], list[ReleaseRecord]]]:
    """Write the training inside the block into the run folder ``output``.

    Args:
        output: The folder, or the recorder of the keeper's folder; None writes nothing.
        keeper: The keeper given to ``fit``, which may use the same folder.
        ranks: The processes that train together: only the first one writes.

    Yields:
        The recorder, in a list that is empty without ``output``, and the open records of releases. The recorder must be
        the last callback: if one refuses to begin, nothing is written.

    Raises:
        ConfigError: The folder is in use; nothing is overwritten.
    """
    recorders, keepers = [], [] if keeper is None or not ranks.first else [keeper]
    if isinstance(output, RunRecorder):
        recorders = [output]
    elif output is not None and ranks.first:
        folder = RunFolder(Path(output))
        shared = keeper is not None and keeper.folder.path.resolve() == folder.path.resolve()
        if folder.in_use and not (shared and keeper is not None and keeper.resume):
            raise ConfigError(
                f"the run folder {folder.path} is not empty. Choose a different one with output=, and keep this one: "
                "its ledger counts for the data"
            )
        if not shared:
            keepers.append(ReleaseRecord(folder.path))
        recorders = [RunRecorder(keepers[-1])]
    with ExitStack() as opened:
        for entry in keepers:
            opened.enter_context(entry.open())
        try:
            yield recorders, keepers
        except BaseException as error:
            with suppress(OSError, CheckpointError):  # the first failure is the one to report
                _finish(recorders, error)
            raise
        _finish(recorders)


def _finish(recorders: list[RunRecorder], error: BaseException | None = None) -> None:
    for recorder in recorders:
        if recorder.run is not None:
            recorder.finish(recorder.run.status(error), failed=error is not None)
