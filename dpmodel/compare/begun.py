"""Marks of the trainings that began in a comparison or search, so that those whose folders are deleted stay charged."""

from __future__ import annotations

from pathlib import Path

from dpmodel.compare.folder import folders_below
from dpmodel.runs.folder import RunFolder
from monitors.atomic import PRIVATE_FOLDER, write_atomically
from monitors.errors import DataError
from monitors.journal import ReleaseJournal
from monitors.untrusted import read_text

#: Folder of the marks. It lies beside the folder of the runs, to survive the deletion of a run or of all of them.
_MARKS = "begun"
_MOST_BYTES = 1 << 16


class BegunMark:
    """The trainings that began in one run folder: a file with their IDs, one per line.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of(cls, run: RunFolder, runs: Path) -> BegunMark:
        """The mark of ``run``, a run folder below ``runs``."""
        return cls(runs.with_name(_MARKS) / run.path.relative_to(runs))

    def trainings(self) -> list[str]:
        """The IDs.

        Raises:
            DataError: The file cannot be read.
        """
        try:
            return read_text(self.path, _MOST_BYTES).split() if self.path.exists() else []
        except (OSError, ValueError) as error:
            raise DataError(f"the trainings that began cannot be counted: {error}; restore the file") from error

    def add(self, journal: ReleaseJournal) -> None:
        """Note the training of ``journal``, before its first release."""
        self.path.parent.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
        self._write(dict.fromkeys([*self.trainings(), str(journal.training)]))

    def withdraw(self, journal: ReleaseJournal) -> None:
        """Forget the training of ``journal`` if it has announced no release."""
        if len(journal) == 1:
            self._write(dict.fromkeys(known for known in self.trainings() if known != journal.training))

    def _write(self, trainings: dict[str, None]) -> None:
        write_atomically(self.path, "".join(f"{training}\n" for training in trainings))


def vanished_below(runs: Path) -> list[RunFolder]:
    """The run folder of each training that began below ``runs`` and lies nowhere below it any more.

    A run folder is named once for each of its vanished trainings.

    Raises:
        DataError: A mark cannot be read.
        CheckpointError: A journal was changed.
    """
    marks = runs.with_name(_MARKS)
    begun = [
        (RunFolder(runs / folder.path.relative_to(marks) / name), training)
        for folder, files in folders_below(marks)
        for name in sorted(files)
        if not name.startswith(".")  # a temporary file of a killed process
        for training in BegunMark(folder.path / name).trainings()
    ]
    present = {ReleaseJournal(run.journal).training for run, files in folders_below(runs) if run.journal.name in files}
    return [run for run, training in begun if training not in present]
