"""Keeps the training history in a CSV file while training."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from dpmodel.callbacks.base import Callback

if TYPE_CHECKING:
    from dpmodel.training.run import Run


class CSVLogger(Callback):
    """Write ``run.history`` to a CSV file after every epoch; the file is always complete.

    The file contains the training loss, which is not private: keep it with the data, not with the published model.

    Args:
        path: The file; an existing one is replaced. Missing folders are created.

    Raises:
        ValueError: ``path`` is a folder.
    """

    first_rank_only = True

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            raise ValueError(f"path must be a file, {self.path} is a folder")

    def on_train_begin(self, run: Run) -> None:
        """Write the header, so that a wrong path fails before any budget is spent."""
        run.history.to_csv(self.path)

    def on_train_epoch_end(self, run: Run) -> None:
        """Write all epochs so far."""
        run.history.to_csv(self.path)
