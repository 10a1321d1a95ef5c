"""The folder of a training, and the names of the files in it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from dpmodel.saving.lock import LOCK_NAME
from dpmodel.training.interrupt import INTERRUPTED
from monitors.errors import ConfigError
from monitors.journal import JOURNAL_NAME
from monitors.untrusted import read_json


@dataclass(frozen=True)
class RunFolder:
    """Files of one training, by content.

    Args:
        path: The folder.

    Example:
        >>> RunFolder(Path("runs/lenet5")).ledger.as_posix()
        'runs/lenet5/ledger.json'
    """

    path: Path

    @property
    def config(self) -> Path:
        """The configuration with every default and the calibrated noise multiplier."""
        return self.path / "config.resolved.yaml"

    @property
    def history(self) -> Path:
        """One line per epoch."""
        return self.path / "history.csv"

    @property
    def norm_bounds(self) -> Path:
        """One line per change of the norm bound; exists if clipping is adaptive."""
        return self.path / "norm_bounds.csv"

    @property
    def checkpoint(self) -> Path:
        """The weights."""
        return self.path / "checkpoint.safetensors"

    @property
    def ledger(self) -> Path:
        """Everything private that was released."""
        return self.path / "ledger.json"

    @property
    def report(self) -> Path:
        """The privacy report for machines."""
        return self.path / "privacy_report.json"

    @property
    def statement(self) -> Path:
        """The privacy report in plain words."""
        return self.path / "privacy_report.md"

    @property
    def test_data(self) -> Path:
        """Size and digest of the test data that the metrics are of."""
        return self.path / "test_data.json"

    @property
    def curve(self) -> Path:
        """The training curve."""
        return self.path / "training_curve.png"

    @property
    def state(self) -> Path:
        """Everything that the next step depends on; exists while a training is under way or interrupted."""
        return self.path / "training_state.safetensors"

    @property
    def journal(self) -> Path:
        """The blocks of steps that were begun, each written before its first step; exists until the training ends."""
        return self.path / JOURNAL_NAME

    def ended(self) -> str | None:
        """How the training in this folder ended; None if it is under way, was interrupted, or failed."""
        try:
            status = str(read_json(self.report)["status"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        stopped = status.startswith("stopped: ") and INTERRUPTED not in status
        return status if stopped or status == "finished" else None

    @property
    def in_use(self) -> bool:
        """Whether the path is a file, or a folder that is not empty."""
        if not self.path.exists():
            return False
        return not self.path.is_dir() or any(file.name != LOCK_NAME for file in self.path.iterdir())

    def claim(self, *, force: bool = False) -> Path | None:
        """Create the empty folder for a new training.

        Args:
            force: Move a folder that is in use aside. Nothing is deleted: its ledger still counts for the data.

        Returns:
            Where the earlier contents are now; None if there were none.

        Raises:
            ConfigError: The folder holds files and ``force`` is not given, or it cannot be created.
        """
        moved = None
        try:
            if self.in_use:
                if not force:
                    raise ConfigError(self._in_use_text())
                moved = self._free_name()
                self.path.rename(moved)
                (moved / LOCK_NAME).unlink(missing_ok=True)
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"the run folder {self.path} cannot be created: {error.strerror}") from error
        return moved

    def abandon(self) -> None:
        """Remove the folder of a training that never began; other files in it stay."""
        for file in (self.config, self.test_data):
            file.unlink(missing_ok=True)
        if self.path.is_dir() and not self.in_use:
            (self.path / LOCK_NAME).unlink(missing_ok=True)
            self.path.rmdir()

    @classmethod
    def existing(cls, path: str | os.PathLike[str]) -> RunFolder:
        """The folder of an existing training.

        Raises:
            ConfigError: There is no such folder, or it contains no training.
        """
        folder = cls(Path(path))
        if folder.ledger.is_file() and not folder.config.is_file():
            raise ConfigError(
                f"{folder.path} was written by fit(output=...) and has no {folder.config.name} to build network and "
                "data from. Build them in Python and load the weights with load_checkpoint; ledger.json, "
                "privacy_report.md and history.csv can be read directly"
            )
        if not folder.config.is_file():
            what = "contains no training" if folder.path.exists() else "does not exist"
            raise ConfigError(
                f"{folder.path} {what}: {folder.config.name} is missing; give a folder of `dpmodel train`"
            )
        return folder

    def _in_use_text(self) -> str:
        text = (
            f"the run folder {self.path} is not empty. Choose a different one with --output (or output.directory), "
            "or use --force to move it aside; nothing is deleted"
        )
        if self.state.is_file():
            text += ". It contains an interrupted training: --resume continues it"
        return text

    def _free_name(self) -> Path:
        number = 1
        while (candidate := self.path.with_name(f"{self.path.name}.previous-{number}")).exists():
            number += 1
        return candidate
