"""The folder of a comparison, and the names of its files."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dpmodel.runs.folder import RunFolder
from dpmodel.saving.lock import LOCK_NAME, holder
from monitors.errors import DataError
from monitors.journal import ReleaseJournal
from monitors.ledger import Ledger
from monitors.untrusted import read_untrusted

#: Subfolder of the marks of the trainings that began.
BEGUN = "begun"


@dataclass(frozen=True)
class ComparisonFolder:
    """The files of one comparison.

    Args:
        path: The folder.
        marks: Folder of the marks of the trainings that began in it; None: ``begun`` in it.

    Example:
        >>> ComparisonFolder(Path("runs/noise")).run("fixed", 1).path.as_posix()
        'runs/noise/runs/fixed/seed-1'
    """

    path: Path
    marks: Path | None = None

    @property
    def multipliers(self) -> Path:
        """Calibrated noise multipliers."""
        return self.path / "multipliers.json"

    @property
    def plan(self) -> Path:
        """What the process that leads the comparison trains; exists while other processes may join it."""
        return self.path / "plan.json"

    @property
    def curves(self) -> Path:
        """Privacy curves computed for the figures."""
        return self.path / "privacy_curves.json"

    @property
    def csv(self) -> Path:
        """One line per run."""
        return self.path / "comparison.csv"

    @property
    def markdown(self) -> Path:
        """The table of variants."""
        return self.path / "comparison.md"

    @property
    def json(self) -> Path:
        """All results as JSON."""
        return self.path / "comparison.json"

    @property
    def html(self) -> Path:
        """The report, with embedded figures."""
        return self.path / "report.html"

    @property
    def figures(self) -> Path:
        """The figures as files."""
        return self.path / "figures"

    @property
    def runs(self) -> Path:
        """The run folders."""
        return self.path / "runs"

    @property
    def trials(self) -> ComparisonFolder:
        """The folder of the search by which the variants choose some of their settings."""
        # Its marks lie outside, because its folder is what one deletes to search again.
        return ComparisonFolder(self.path / "tune", self.path / "begun_tune")

    @property
    def begun(self) -> Path:
        """Marks of the trainings that began here."""
        return self.path / BEGUN if self.marks is None else self.marks

    def run(self, slug: str, seed: int) -> RunFolder:
        """The run folder of a variant and a seed."""
        return RunFolder(self.runs / slug / f"seed-{seed}")

    def withdraw(self) -> None:
        """Remove the results before further trainings: they state an epsilon without those."""
        for path in (self.csv, self.markdown, self.json, self.html):
            path.unlink(missing_ok=True)

    def busy(self) -> dict[Path, str]:
        """The run folders that processes hold, and these processes in words."""
        below = [*folders_below(self.runs), *folders_below(self.trials.runs)]
        locked = [run.path for run, files in below if LOCK_NAME in files]
        # A link may lead back to the folder of the comparison, which the caller holds.
        held = {path: holder(path) for path in locked if not path.samefile(self.path)}
        return {path: words for path, words in held.items() if words is not None}

    def ledgers(self) -> dict[Path, Ledger]:
        """Ledgers of all trainings ever made in this folder, including interrupted ones that were moved aside."""
        return {**ledgers_below(self.runs), **ledgers_below(self.trials.runs)}


def ledgers_below(path: Path) -> dict[Path, Ledger]:
    """The ledger of each run folder at any depth below ``path``, by the path of that folder.

    A copy of a run folder that went on after it was copied is left out: the other folder states all of its releases.

    Raises:
        DataError: A run folder has no ledger although its training began, or its ledger cannot be read.
    """
    found: dict[Path, Ledger] = {}
    try:
        folders = list(folders_below(path))
        journals = {run.path: ReleaseJournal(run.journal) for run, files in folders if run.journal.name in files}
        for run, files in folders:
            if run.path in journals and _goes_on(journals[run.path], journals.values()):
                continue
            # The files of a training that has begun since the folder was listed are looked for again.
            if run.ledger.name in files or (_has_begun(run, files) and run.ledger.is_file()):
                found[run.path] = run.read_ledger()
            elif _has_begun(run, files):
                raise DataError(f"{run.ledger} is missing beside a training that began; restore the file")
    except (OSError, ValueError) as error:
        raise DataError(f"cannot compute the total epsilon of the trainings in {path}: {in_short(error)}") from error
    return found


def _goes_on(journal: ReleaseJournal, others: Iterable[ReleaseJournal]) -> bool:
    """Whether one of ``others`` holds all lines of ``journal`` and more."""
    return len(journal) > 0 and any(
        len(other) > len(journal) and other.has(len(journal), journal.head) for other in others
    )


def require_distinct(runs: Iterable[RunFolder]) -> None:
    """Refuse run folders that hold copies of one training, which would count as independent runs.

    Raises:
        DataError: Two do; both are named.
    """
    holders: dict[str | None, RunFolder] = {}
    for run in runs:
        training = ReleaseJournal(run.journal).training if run.journal.exists() else None
        other = holders.setdefault(training, run)
        if training is not None and other is not run:
            raise DataError(
                f"{run.path} and {other.path} hold the same training, but a comparison needs a separate one for each "
                "run; move the copy away and repeat the command"
            )


def in_short(error: Exception) -> str:
    """The message of an error on one line, without all of a long value that somebody wrote into a file.

    Example:
        >>> in_short(ValueError("the status is " + "x" * 5000))
        'the status is ...'
    """
    return textwrap.shorten(str(error), 600, placeholder=" ...")


def folders_below(path: Path) -> Iterator[tuple[RunFolder, list[str]]]:
    """Every folder, linked ones too, and the names of its files; a folder that cannot be read is an error."""
    seen: set[str] = set()
    for name, folders, files in os.walk(path, followlinks=True, onerror=_refuse):
        # A link to a folder above would be followed for ever.
        real = os.path.realpath(name)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield RunFolder(Path(name)), files


def _refuse(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise DataError(f"{error.filename} cannot be read: {error.strerror}, so its trainings cannot be counted")


def _has_begun(run: RunFolder, files: list[str]) -> bool:
    """Whether a run folder without a ledger shows that something was released."""
    if not {run.state.name, run.checkpoint.name, run.history.name, run.report.name}.isdisjoint(files):
        return True
    # The journal is there a moment before the ledger; the first release is announced after both.
    return run.journal.name in files and b'"block"' in read_untrusted(run.journal)
