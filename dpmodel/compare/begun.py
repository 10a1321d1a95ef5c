"""Marks of the trainings that began in a comparison or search, so that those whose folders are deleted stay charged."""

from __future__ import annotations

from pathlib import Path

from dpmodel.compare.folder import folders_below
from dpmodel.runs.folder import RunFolder
from monitors.atomic import write_atomically
from monitors.errors import DataError
from monitors.journal import ReleaseJournal
from monitors.untrusted import read_text

_SUFFIX = ".begun"
_MOST_BYTES = 1 << 16


class BegunMark:
    """A file beside a run folder: the ID of each training that has begun there, one per line.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.path = folder.path.with_name(f"{folder.path.name}{_SUFFIX}")

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
        self._write(dict.fromkeys([*self.trainings(), str(journal.training)]))

    def withdraw(self, journal: ReleaseJournal) -> None:
        """Forget the training of ``journal`` if it has announced no release."""
        if len(journal) == 1:
            self._write(dict.fromkeys(known for known in self.trainings() if known != journal.training))

    def _write(self, trainings: dict[str, None]) -> None:
        write_atomically(self.path, "".join(f"{training}\n" for training in trainings))


def vanished_below(path: Path) -> list[RunFolder]:
    """The run folder of each training that began below ``path`` and lies nowhere below it any more.

    A run folder is named once for each of its vanished trainings.

    Raises:
        DataError: A mark cannot be read.
        CheckpointError: A journal was changed.
    """
    begun: list[RunFolder] = []
    present: set[str | None] = set()
    for run, files in folders_below(path):
        begun += [RunFolder(run.path / name.removesuffix(_SUFFIX)) for name in sorted(files) if name.endswith(_SUFFIX)]
        if run.journal.name in files:
            present.add(ReleaseJournal(run.journal).training)
    return [run for run in begun for training in BegunMark(run).trainings() if training not in present]
