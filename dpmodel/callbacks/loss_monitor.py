"""Prints the training loss during training."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dpmodel.callbacks.base import Callback
from dpmodel.callbacks.position import step_in_epoch
from monitors import checks

if TYPE_CHECKING:
    from dpmodel.training.run import Run


class LossMonitor(Callback):
    """Print ``epoch: 1 step: 50, loss is 0.31`` every few steps, as MindSpore does.

    The loss of the last drawn batch is NOT private: no noise is added and no ledger row covers it. Show it only to
    people who may see the data.

    Args:
        per_print_times: Steps between two lines; 1 prints every step, 0 prints nothing.

    Raises:
        ValueError: ``per_print_times`` is not an integer of at least 0.
    """

    def __init__(self, per_print_times: int = 1) -> None:
        checks.non_negative_int(per_print_times=per_print_times)
        self.per_print_times = per_print_times
        self._last_printed = 0

    def on_train_begin(self, run: Run) -> None:
        """Count from the first step of this training."""
        self._last_printed = run.first_step

    def on_train_step_end(self, run: Run) -> None:
        """Print when enough steps have passed."""
        if self.per_print_times == 0 or run.step - self._last_printed < self.per_print_times:
            return
        self._last_printed = run.step
        # A Poisson draw may be empty and has no loss then.
        known = run.loss is not None and not math.isnan(run.loss)
        loss = f"{run.loss:.6g}" if known else "not known (no example was drawn)"
        run.say(f"epoch: {run.epoch} step: {step_in_epoch(run)}, loss is {loss}")
