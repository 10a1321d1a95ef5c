"""Marks of the trainings that began in a comparison or search, so that those whose folders are deleted stay charged."""

from __future__ import annotations

from pathlib import Path

from dpmodel.compare.folder import ComparisonFolder, folders_below
from dpmodel.runs.folder import RunFolder
from monitors.atomic import PRIVATE_FOLDER, write_atomically
from monitors.errors import DataError
from monitors.journal import ReleaseJournal
from monitors.ledger import Ledger
from monitors.untrusted import read_text

#: Folder of the planned ledgers, inside that of the marks; not the name of a run folder.
_PLANNED = ".planned"
_MOST_BYTES = 1 << 16


class BegunMark:
    """The trainings that began in one run folder: a file with a line for each.

    A line has the ID of the training and the digest of its planned ledger, which lies in the folder of the marks.

    Args:
        path: The file.
        marks: Folder of the marks. It lies beside the folder of the runs, to survive the deletion of a run or of all.
    """

    def __init__(self, path: Path, marks: Path) -> None:
        self.path = path
        self.marks = marks

    @classmethod
    def of(cls, run: RunFolder, runs: Path, marks: Path) -> BegunMark:
        """The mark of ``run``, a run folder below ``runs``."""
        return cls(marks / run.path.relative_to(runs), marks)

    def trainings(self) -> dict[str, str]:
        """The IDs, each with the digest of its planned ledger.

        Raises:
            DataError: The file cannot be read.
        """
        try:
            lines = read_text(self.path, _MOST_BYTES).splitlines() if self.path.exists() else []
        except (OSError, ValueError) as error:
            raise DataError(f"the trainings that began cannot be counted: {error}; restore the file") from error
        found: dict[str, str] = {}
        for line in lines:
            words = line.split()
            if len(words) != 2:
                raise DataError(
                    f"the trainings that began cannot be counted: {self.path} has the line {line[:80]!r} instead of an "
                    "ID and a digest; restore the file"
                )
            found.setdefault(words[0], words[1])
        return found

    def add(self, journal: ReleaseJournal, planned: Ledger) -> None:
        """Note the training of ``journal`` and what it is going to release, before its first release."""
        digest = planned.digest()
        ledger = self._planned(digest)
        for folder in (self.path.parent, ledger.parent):
            folder.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
        write_atomically(ledger, planned.to_json())
        self._write({str(journal.training): digest, **self.trainings()})

    def withdraw(self, journal: ReleaseJournal) -> None:
        """Forget the training of ``journal`` if it has announced no release."""
        if not journal.released:
            known = self.trainings()
            known.pop(str(journal.training), None)
            self._write(known)

    def planned(self, training: str) -> Ledger:
        """The planned ledger of ``training``.

        Raises:
            DataError: It is missing or was changed.
        """
        path = self._planned(self.trainings()[training])
        try:
            ledger = Ledger.from_json(read_text(path))
            if ledger.digest() != path.stem:
                raise ValueError(f"its digest is {ledger.digest()}")
        except (OSError, ValueError) as error:
            raise DataError(
                f"what the training named in {self.path} was going to release cannot be read ({error}); restore {path}"
            ) from error
        return ledger

    def _planned(self, digest: str) -> Path:
        return self.marks / _PLANNED / f"{digest}.json"

    def _write(self, trainings: dict[str, str]) -> None:
        write_atomically(self.path, "".join(f"{training} {digest}\n" for training, digest in trainings.items()))


def vanished_below(runs: Path, marks: Path) -> list[tuple[RunFolder, Ledger]]:
    """Each training that began below ``runs`` and lies nowhere below it any more: its run folder and planned ledger.

    A run folder is named once for each of its vanished trainings.

    Raises:
        DataError: A mark or a planned ledger cannot be read.
        CheckpointError: A journal was changed.
    """
    begun = [
        (RunFolder(runs / folder.path.relative_to(marks) / name), BegunMark(folder.path / name, marks), training)
        for folder, files in folders_below(marks)
        if folder.path.name != _PLANNED
        for name in sorted(files)
        if not name.startswith(".")  # a temporary file of a killed process
        for training in BegunMark(folder.path / name, marks).trainings()
    ]
    present = {ReleaseJournal(run.journal).training for run, files in folders_below(runs) if run.journal.name in files}
    return [(run, mark.planned(training)) for run, mark, training in begun if training not in present]


def vanished_in(folder: ComparisonFolder) -> list[tuple[RunFolder, Ledger]]:
    """``vanished_below`` for the runs of a comparison and of its search."""
    return [found for part in (folder, folder.trials) for found in vanished_below(part.runs, part.begun)]
