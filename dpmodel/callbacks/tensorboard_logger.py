"""Logs the training to TensorBoard."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpmodel.callbacks.base import Callback
from monitors import checks

if TYPE_CHECKING:
    from dpmodel.training.run import Run


class TensorBoardLogger(Callback):
    """Scalars for TensorBoard: loss, noise multiplier and norm bound by step; metrics and epsilon by epoch.

    The training loss is not private; keep the log with the data, not with the published model.

    Args:
        directory: Folder of the event files.
        every_n_steps: Steps between two points of the curves by step.

    Raises:
        ImportError: TensorBoard is not installed; says how to install it.
        ValueError: ``every_n_steps`` is not an integer of at least 1.
    """

    first_rank_only = True

    def __init__(self, directory: str | os.PathLike[str] = "runs", every_n_steps: int = 50) -> None:
        checks.positive_int(every_n_steps=every_n_steps)
        self.directory = Path(directory)
        self.every_n_steps = every_n_steps
        self._writer_class = _summary_writer_class()
        self._writer: Any = None

    def on_train_begin(self, run: Run) -> None:
        """Open an event file."""
        del run
        self._writer = self._writer_class(log_dir=str(self.directory))

    def on_train_step_end(self, run: Run) -> None:
        """Write the figures of the step, every ``every_n_steps`` steps."""
        if (run.step - run.first_step) % self.every_n_steps:
            return
        values = {"train/loss (not private)": run.loss, "privacy/noise_multiplier": run.noise_multiplier}
        self._write({**values, "privacy/norm_bound": run.norm_bound}, run.step)

    def on_train_epoch_end(self, run: Run) -> None:
        """Write the figures of the epoch."""
        metrics = {f"valid/{name}": value for name, value in run.metrics.items()}
        epsilon = run.history.epochs[-1].epsilon if len(run.history) else None
        self._write({**metrics, "privacy/epsilon": epsilon}, run.step)
        self._writer.flush()

    def on_train_end(self, run: Run) -> None:
        """Close the event file."""
        del run
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write(self, values: dict[str, float | None], step: int) -> None:
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(name, value, global_step=step)


def _summary_writer_class() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "TensorBoardLogger needs TensorBoard, which is not installed; in the clone of dpmodel, run: "
            'pip install -e ".[tensorboard]"'
        ) from error
    return SummaryWriter
