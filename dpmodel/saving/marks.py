"""Marks of the trainings of this user, kept outside their folders: how far each has gone, and that it was made here."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from monitors.atomic import PRIVATE_FOLDER, write_atomically
from monitors.errors import CheckpointError
from monitors.journal import ReleaseJournal
from monitors.untrusted import read_json

#: Folder of the marks; an empty value or "off" keeps none.
VARIABLE = "DPMODEL_MARKS"

_ID = re.compile(r"[0-9a-f]{32,64}")


@dataclass(frozen=True)
class TrainingMark:
    """How far a training has gone, as the process that trained it saw.

    A folder that states less than its mark was rolled back, for example by restoring a backup, and would understate
    what was spent. A training without a mark was made by a different user or on a different machine.

    Args:
        training: Random ID of the training, as hex.
        lines: Lines of its release journal.
        head: Digest over these lines.
        config: SHA-256 of its ``config.resolved.yaml``, as hex; None for a training from Python.
    """

    training: str
    lines: int
    head: str
    config: str | None = None

    def save(self, *, flush: bool = True) -> None:
        """Write the mark, unless this user keeps none or the folder of the marks cannot be written.

        Args:
            flush: Whether it must outlive a power cut.
        """
        path = self.path
        if path is None:
            return
        with contextlib.suppress(OSError):  # a home that cannot be written must not stop a training
            path.parent.mkdir(parents=True, exist_ok=True, mode=PRIVATE_FOLDER)
            write_atomically(path, json.dumps(dataclasses.asdict(self)) + "\n", flush=flush)

    @property
    def path(self) -> Path | None:
        """The file of the mark; None if this user keeps none."""
        folder = marks_folder()
        return None if folder is None else folder / f"{self.training}.json"

    @classmethod
    def of(cls, training: str) -> TrainingMark | None:
        """The mark of ``training``; None if this user has none, or it cannot be read."""
        folder = marks_folder()
        if folder is None or not _ID.fullmatch(training):
            return None
        try:
            values = read_json(folder / f"{training}.json", limit=4096)
            mark = cls(**values)
            sound = mark.training == training and isinstance(mark.lines, int) and isinstance(mark.head, str)
        except (OSError, ValueError, TypeError):
            return None
        return mark if sound and (mark.config is None or isinstance(mark.config, str)) else None


def require_marked_lines(path: Path) -> ReleaseJournal:
    """The journal at ``path``, unless this user has seen it further on.

    Raises:
        CheckpointError: It was changed, or is older than its mark, or went a different way since.
    """
    journal = ReleaseJournal(path)
    if path.is_file() and not has_its_mark(journal):
        journal = ReleaseJournal(path)  # a mark follows its line: a training may have written both just now
        require_marked(journal)
    return journal


def require_marked(journal: ReleaseJournal) -> None:
    """Refuse a journal that this user has seen further on.

    Raises:
        CheckpointError: It is older than its mark, or went a different way since.
    """
    if has_its_mark(journal):
        return
    mark = TrainingMark.of(str(journal.training))
    assert mark is not None
    path = journal.path
    raise CheckpointError(
        f"{path.parent} is an older copy of its ledger: {path.name} has {len(journal)} lines, and this user has seen "
        f"{mark.lines} lines, or different ones. What was released since counts for the data. Use the folder that has "
        f"gone on, or restore the latest copy. To use this one anyway, remove {mark.path}, or set {VARIABLE}=off: its "
        "epsilon then lacks what was released since"
    )


def has_its_mark(journal: ReleaseJournal) -> bool:
    """Whether all that this user has seen of a training is in ``journal``."""
    mark = None if journal.training is None else TrainingMark.of(journal.training)
    return mark is None or journal.has(mark.lines, mark.head)


def marks_folder() -> Path | None:
    """Folder of the marks: ``$DPMODEL_MARKS``, or ``dpmodel/trainings`` in the user's folder for state.

    Returns:
        None if ``$DPMODEL_MARKS`` is empty or ``off``.

    Raises:
        CheckpointError: ``$DPMODEL_MARKS`` is in the home folder of an unknown user.

    Example:
        >>> os.environ["DPMODEL_MARKS"] = "off"
        >>> print(marks_folder())
        None
        >>> del os.environ["DPMODEL_MARKS"]
    """
    given = os.environ.get(VARIABLE)
    if given is not None:
        return None if given.strip().lower() in ("", "off") else _expanded(given)
    base = os.environ.get("XDG_STATE_HOME")
    try:
        home = Path(base) if base and Path(base).is_absolute() else Path.home() / ".local" / "state"
    except RuntimeError:  # no home folder
        return None
    return home / "dpmodel" / "trainings"


def _expanded(folder: str) -> Path:
    try:
        return Path(folder).expanduser()
    except RuntimeError as error:
        raise CheckpointError(
            f"{VARIABLE}={folder!r} is in the home folder of an unknown user ({error}). Set it to a folder, or to 'off'"
        ) from error
