"""Writes a training into its run folder while it goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dpmodel._files import write_atomically
from dpmodel.callbacks.base import Callback
from dpmodel.checkpoint import save_checkpoint
from dpmodel.report import PrivacyReport, make_report, report_in_words
from dpmodel.runfolder import RESERVED_NOTE as RESERVED_NOTE

if TYPE_CHECKING:
    from dpmodel.plan import TrainingPlan
    from dpmodel.run import Run
    from dpmodel.runfolder import RunFolder


class RunRecorder(Callback):
    """Keeps the files of a run folder up to date.

    The ledger on disk is never behind the training: before an epoch begins, all its steps are written as if they had
    been released; when it ends, what was really released replaces that. A training that is killed in between is charged
    for the whole epoch; when it is resumed, for the steps that were lost beside the planned ones.

    Args:
        folder: Where to write.
        plan: What is being trained.
    """

    def __init__(self, folder: RunFolder, plan: TrainingPlan) -> None:
        self.folder = folder
        self.plan = plan
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
        report = make_report(self.plan, run.ledger, run.step, status=status, verified=run.verification)
        write_atomically(self.folder.report, report.to_json())
        write_atomically(self.folder.statement, report_in_words(report))
        self._write_progress(run)
        if self.plan.config.output.curve and len(run.history):
            run.history.plot(self.folder.curve, ledger=run.ledger, accountant=run.accountant)
        return report

    def _reserve(self, run: Run) -> None:
        reserved = run.ledger.copy()
        for step in range(run.step, min(run.step + run.steps_per_epoch, run.planned_steps)):
            reserved.record(run.event(step))
        reserved.add_note(RESERVED_NOTE)
        reserved.save(self.folder.ledger)

    def _write_progress(self, run: Run) -> None:
        output = self.plan.config.output
        if output.history:
            run.history.to_csv(self.folder.history)
            if len(run.history.norm_bounds) > 1:
                run.history.norm_bounds_to_csv(self.folder.norm_bounds)
        if output.checkpoint:
            save_checkpoint(self.folder.checkpoint, run)
