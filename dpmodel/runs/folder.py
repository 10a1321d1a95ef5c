"""The folder of a training, and the names of the files in it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpmodel.saving.lock import LOCK_NAME, FolderLock
from dpmodel.saving.marks import require_marked_lines
from dpmodel.training.interrupt import INTERRUPTED
from monitors.atomic import PRIVATE_FOLDER
from monitors.errors import CheckpointError, ConfigError
from monitors.journal import JOURNAL_NAME, ReleaseJournal
from monitors.ledger import Ledger
from monitors.untrusted import read_json

if TYPE_CHECKING:
    from dpmodel.saving.checkpoint import CheckpointInfo


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
    def page(self) -> Path:
        """The privacy report as a web page."""
        return self.path / "privacy_report.html"

    @property
    def losses(self) -> Path:
        """The distribution of the privacy loss; exists if there is a guarantee."""
        return self.path / "privacy_loss.json"

    @property
    def queries(self) -> Path:
        """The folder of the query ledger, if the network answers queries at a price."""
        return self.path / "queries"

    @property
    def test_data(self) -> Path:
        """Size and digest of the test data that the metrics are of."""
        return self.path / "test_data.json"

    @property
    def inputs(self) -> Path:
        """Shape and type of the inputs, and the number of classes: what queries need to know of the data."""
        return self.path / "inputs.json"

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
        """The blocks of steps that were begun, each written before its first step, and how each process ended."""
        return self.path / JOURNAL_NAME

    def ended(self) -> str | None:
        """How the training in this folder ended; None if it is under way, was interrupted, or failed.

        A training has ended when the journal says so, which it does last, after all results are written.

        Raises:
            CheckpointError: The journal was changed.
        """
        if self.journal.exists():
            end = ReleaseJournal(self.journal).end
            status = end[0] if end is not None else ""
        else:
            report = self._report()  # an earlier version removed the journal, and its reports name no head
            status = "" if report.get("journals") else str(report.get("status"))
        return status if is_final(status) else None

    def read_ledger(self) -> Ledger:
        """The ledger of this training, if all files of the folder belong together.

        Weights, state and report name the head of the journal at the moment when they were written, and the number of
        releases up to then. None of them may be ahead of journal and ledger, or belong to a different training; the
        journal may not be older than this user has seen it (see ``TrainingMark``).

        Raises:
            CheckpointError: A file is missing or damaged, or contradicts the others; the message names it.
        """
        # Read in the order opposite to that of writing, so that no file of a running training is ahead of the journal.
        named, report = self._weights(), self._report()
        try:
            ledger = Ledger.load(self.ledger, alone=False)
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{self.ledger} is missing; without the ledger no epsilon can be stated for this model"
            ) from error
        except (OSError, ValueError) as error:
            raise CheckpointError(str(error)) from error
        journal, digest = require_marked_lines(self.journal), ledger.digest()
        for file, info in named.items():
            own = journal.follows(*info.heads) if info.heads else info.ledger_digest == digest
            if not own or ledger.total < info.ledger_total:
                raise self._foreign(file, journal)
        stated, current = report.get("journals"), report.get("ledger_digest") == digest
        heads = stated if isinstance(stated, list) else [stated] if stated else []
        ended = journal.end is not None or not self.journal.exists()
        if report and ((ended and not current) or (heads and not journal.follows(*heads))):
            raise self._foreign(self.report, journal)
        return ledger

    def _weights(self) -> dict[Path, CheckpointInfo]:
        from dpmodel.saving.checkpoint import read_info

        return {file: read_info(file) for file in (self.checkpoint, self.state) if file.is_file()}

    def _report(self) -> dict[str, Any]:
        """The report; empty if there is none."""
        try:
            report = read_json(self.report)
        except (OSError, ValueError):
            return {}
        return report if isinstance(report, dict) else {}

    def _foreign(self, file: Path, journal: ReleaseJournal) -> CheckpointError:
        if journal.training is None:
            return CheckpointError(
                f"{file} does not match {self.ledger.name}: an earlier version of dpmodel wrote this folder and the "
                "training has not ended. Read it with that version; its releases count for the data"
            )
        return CheckpointError(
            f"{file} does not match {self.ledger.name} and {self.journal.name} beside it: they belong to different "
            "trainings, or to different moments of one. What was spent on it cannot be stated. Restore the latest copy "
            "of all files"
        )

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
            self.path.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"the run folder {self.path} cannot be created: {error.strerror}") from error
        return moved

    def abandon(self, lock: FolderLock) -> None:
        """Empty the folder of a training that released nothing, and remove it when ``lock`` is released.

        Other files in it stay, and so does the folder then.
        """
        lock.remove(self.config, self.test_data, self.inputs)
        lock.discard()

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

    def refuse_links(self) -> None:
        """Refuse a ledger, journal or state that is a link, or not a regular file, such as a named pipe.

        A folder in place of a result is refused, too: it could not be replaced.

        Raises:
            CheckpointError: One is; the file is named.
        """
        for file in (self.ledger, self.journal, self.state):
            if file.is_symlink() or (file.exists() and not file.is_file()):
                kind = "a link, which is not followed" if file.is_symlink() else "not a regular file"
                raise CheckpointError(
                    f"{file} is {kind}. The record of a training lies in its folder: put the file itself there, or "
                    "choose a different folder"
                )
        results = (self.report, self.statement, self.page, self.losses, self.curve, self.checkpoint, self.history)
        for file in (*results, self.norm_bounds):
            if file.is_dir() and not file.is_symlink():
                raise CheckpointError(f"{file} is a folder, in place of a result; move it away")

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


def is_final(status: str) -> bool:
    """Whether a training with this ``status`` is over: finished or stopped, but not interrupted or failed."""
    return status == "finished" or (status.startswith("stopped: ") and INTERRUPTED not in status)


def require_outside_runs(path: str | os.PathLike[str], option: str, writer: str) -> None:
    """Refuse a place in a run folder for the results of what only reads it.

    Args:
        path: Where something will be written.
        option: The option that names it.
        writer: What would write it, in words.

    Raises:
        ConfigError: ``path`` is a run folder, or lies in one, or a link leads there.
    """
    place = Path(path).resolve()
    for folder in (place, *place.parents):
        if RunFolder(folder).ledger.exists():
            raise ConfigError(
                f"{folder} is a run folder, which {writer} does not change; choose a different place with --{option}"
            )
