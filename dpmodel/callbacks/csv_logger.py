"""Keeps the training history in a CSV file while training."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from dpmodel.callbacks.base import Callback
from dpmodel.training.table_file import TableFile

if TYPE_CHECKING:
    from dpmodel.training.run import Run


class CSVLogger(Callback):
    """Keep ``run.history`` in a CSV file, one line per epoch; an epoch is appended when it ends.

    The file contains the training loss, which is not private: keep it with the data, not with the published model. Only
    the user can read it (mode 0600).

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
        self._file = TableFile(self.path)

    def on_train_begin(self, run: Run) -> None:
        """Write the header, so that a wrong path fails before any budget is spent."""
        self._file = TableFile(self.path)
        self.on_train_epoch_end(run)

    def on_train_epoch_end(self, run: Run) -> None:
        """Write the epochs that the file lacks."""
        self._file.update(run.history.columns, run.history.cells)
