"""Writes a training into its run folder while it runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dpmodel.callbacks.base import Callback
from dpmodel.config.sections import OutputSection
from dpmodel.runs.folder import RunFolder
from dpmodel.runs.report import PrivacyReport, ReportSubject, make_report
from dpmodel.saving.checkpoint import save_checkpoint
from dpmodel.saving.record import ReleaseRecord
from monitors.errors import ConfigError

if TYPE_CHECKING:
    from dpmodel.training.run import Run


class RunRecorder(Callback):
    """Keeps history, weights and report in a run folder up to date; the ledger is written by ``ReleaseRecord``.

    Args:
        folder: Where to write.
        output: What to write besides the report. Default: all of it.
        subject: The training as its report describes it. Default: as the run describes itself.
        writes: Whether this process writes the folder; False on all ranks but the first.
    """

    def __init__(
        self,
        folder: RunFolder,
        output: OutputSection | None = None,
        subject: ReportSubject | None = None,
        *,
        writes: bool = True,
    ) -> None:
        self.folder = folder
        self.writes = writes
        self.output = OutputSection() if output is None else output
        self.subject = subject
        self.run: Run | None = None

    def on_train_begin(self, run: Run) -> None:
        """Note the run; before this, there is nothing to report."""
        self.run = run

    def on_train_epoch_end(self, run: Run) -> None:
        """Write the history and the weights."""
        self._write_progress(run)

    def finish(self, status: str) -> PrivacyReport | None:
        """Write everything once more, with the report; None if the training never began.

        Args:
            status: ``"finished"``, or why the training ended early.
        """
        run = self.run
        if run is None:
            return None
        subject = run.subject if self.subject is None else self.subject
        report = make_report(subject, run.ledger, run.step, status=status, verified=run.verification)
        if not self.writes:
            return report
        report.save(self.folder.path)
        self._write_progress(run)
        if self.output.curve and len(run.history):
            run.history.plot(self.folder.curve, ledger=run.ledger, accountant=run.accountant)
        return report

    def _write_progress(self, run: Run) -> None:
        if not self.writes:
            return
        if self.output.history:
            run.history.to_csv(self.folder.history)
            if len(run.history.norm_bounds) > 1:
                run.history.norm_bounds_to_csv(self.folder.norm_bounds)
        if self.output.checkpoint:
            save_checkpoint(self.folder.checkpoint, run)


@contextmanager
def recording(
    output: str | os.PathLike[str] | None, keeper: ReleaseRecord | None
) -> Iterator[tuple[list[RunRecorder], list[ReleaseRecord]]]:
    """Write the training inside the block into the run folder ``output``.

    Args:
        output: The folder; None writes nothing.
        keeper: The keeper given to ``fit``, which may use the same folder.

    Yields:
        The recorder, in a list that is empty without ``output``, and the open records of releases. The recorder must be
        the last callback: if one refuses to begin, nothing is written.

    Raises:
        ConfigError: The folder is in use; nothing is overwritten.
    """
    recorders, keepers = [], [] if keeper is None else [keeper]
    if output is not None:
        folder = RunFolder(Path(output))
        shared = keeper is not None and keeper.folder.path.resolve() == folder.path.resolve()
        if folder.in_use and not (shared and keeper is not None and keeper.resume):
            raise ConfigError(
                f"the run folder {folder.path} is not empty. Choose a different one with output=, and keep this one: "
                "its ledger counts for the data"
            )
        recorders = [RunRecorder(folder)]
        if not shared:
            keepers.append(ReleaseRecord(folder.path))
    with ExitStack() as opened:
        for entry in keepers:
            opened.enter_context(entry.open())
        try:
            yield recorders, keepers
        except BaseException as error:
            _finish(recorders, error)
            raise
        _finish(recorders)


def _finish(recorders: list[RunRecorder], error: BaseException | None = None) -> None:
    for recorder in recorders:
        if recorder.run is not None:
            recorder.finish(recorder.run.status(error))
