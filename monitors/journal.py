"""The append-only journal of what a training is about to release, so that a killed process is charged in full."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

from monitors import checks
from monitors.atomic import naming, open_for_appending, read_without_links, sync_folder
from monitors.errors import CheckpointError
from monitors.events import PrivacyEvent, ViolationEvent, event_from_dict
from monitors.untrusted import MAX_LEDGER_BYTES, parse_json

#: Name of the journal; it lies beside the ledger that it runs ahead of.
JOURNAL_NAME = "releases.jsonl"

#: Most events of one line, and of all lines since a head: far more than a block of steps.
MOST_ANNOUNCED = 10**7

#: First link of the chain of digests.
FORMAT = "dpmodel-releases/2"


#: First step of events that are not steps.
_NO_STEP = -1

#: First step of equal events, the event, and their number.
_Run = tuple[int, dict[str, Any], int]


class ReleaseJournal:
    """A file of lines, each flushed to the disk before what it announces takes place.

    ``begun``: a process starts at ``step``; of what was announced before, only the first ``step`` steps are part of its
    training. ``block``: the steps from ``step`` on are about to be released, with these events. ``recorded``: this
    event, which is not a step, is about to be released. ``violation``: the claim is void for this reason. ``ended``:
    the process has written its results, and its ledger has this digest.

    Guarantee: a step is released only after the line of its block is on the disk. A file that states what was released
    up to a moment between two steps names the ``head`` of that moment; ``announced(head)`` is at least what was
    released since, whenever the process was killed. Each line carries a digest over all lines before it, so a changed
    file is refused. An incomplete last line belongs to a block that had not begun and is ignored.

    Each ``begun`` holds a random ID, so two trainings never have a head in common, and neither have two copies of one
    training that both go on: the head alone states to which training a file belongs, and to which moment of it. The
    journal stays when the training ends.

    Args:
        path: The file; the first line creates it. It is never read or written through a link.
        folder: Handle of its open folder, which then stays the same folder if it is moved.

    Attributes:
        training: ID in the first line, as hex; None in a journal of an earlier version.

    Raises:
        CheckpointError: The file was changed after it was written (the line is named), or is a link or not a regular
            file.
    """

    def __init__(self, path: str | os.PathLike[str], *, folder: int | None = None) -> None:
        self.path = Path(path)
        self._folder = folder
        self._size = self._torn = 0  # bytes of the whole lines, and of an incomplete last one
        self._unfinished = False  # the last line lacks its newline
        self._read()
        self.training: str | None = self._first_id() if self._lines else secrets.token_hex(16)

    def _first_id(self) -> str | None:
        found = parse_json(self._lines[0]).get("id")
        return None if found is None else str(found)

    def __len__(self) -> int:
        return len(self._lines)

    @property
    def head(self) -> str:
        """Digest over all lines."""
        return self._digests[-1]

    def follows(self, *heads: object) -> bool:
        """Whether the journal once had one of these heads and has only grown since."""
        return any(head in self._digests for head in heads)  # not by hash: somebody else may have written them

    def has(self, lines: int, head: str) -> bool:
        """Whether the digest over the first ``lines`` lines is ``head``."""
        return 0 <= lines < len(self._digests) and self._digests[lines] == head

    @property
    def released(self) -> bool:
        """Whether anything was announced, or found to void the claim."""
        return any(parse_json(line)["kind"] not in ("begun", "ended") for line in self._lines)

    @property
    def end(self) -> tuple[str, str] | None:
        """How the last process ended, and the digest of its ledger; None if it is running or was killed."""
        last = parse_json(self._lines[-1]) if self._lines else {}
        return (str(last["status"]), str(last["ledger"])) if last.get("kind") == "ended" else None

    def begin(self, step: int) -> None:
        """State that a process starts at ``step``; steps announced beyond it by earlier processes are lost."""
        self._append({"kind": "begun", "step": step, "id": secrets.token_hex(16)})

    def announce(self, step: int, events: Iterable[PrivacyEvent]) -> None:
        """Announce the release of ``events``, one per step, from step number ``step`` on."""
        rows = [[event.to_dict(), len(list(same))] for event, same in groupby(events)]
        self._append({"kind": "block", "step": step, "rows": rows})

    def record(self, event: PrivacyEvent, count: int = 1) -> None:
        """Announce ``count`` releases of ``event`` that are not steps, such as answers to queries of a callback."""
        self._append({"kind": "recorded", "rows": [[event.to_dict(), count]]})

    def finish(self, status: str, ledger: str) -> None:
        """State that the results of a process are written.

        Args:
            status: How it ended.
            ledger: Digest of its ledger.
        """
        self._append({"kind": "ended", "status": status, "ledger": ledger})

    def violate(self, step: int, reason: str) -> None:
        """State that the claim was found to be void when ``step`` steps were done."""
        self._append({"kind": "violation", "step": step, "reason": reason})

    @property
    def violations(self) -> tuple[str, ...]:
        """Reasons of the violations."""
        return tuple(self._violations)

    def announced(self, head: str) -> list[list[tuple[PrivacyEvent, int]]]:
        """What was announced since the journal had this ``head``: one list per process, possibly empty, oldest first.

        Each row is an event and its number: somebody else's journal may state millions.

        The first list belongs to the process that was running at that moment. Different processes release different
        things, even for the same step.

        Raises:
            CheckpointError: There are more than ``MOST_ANNOUNCED`` events.
        """
        processes: list[list[_Run]] = [[]]
        end = 0  # of the steps that the process has announced
        for line in map(parse_json, self._lines[self._digests.index(head) :]):
            if line["kind"] == "begun":
                processes.append([])
                end = 0
            elif line["kind"] == "block":
                if line["step"] < end:  # the rest of a block, after a change of its schedule: it had not begun
                    processes[-1] = _before(processes[-1], line["step"])
                end = line["step"]
                for event, times in line["rows"]:
                    processes[-1].append((end, event, times))
                    end += times
            elif line["kind"] == "recorded":
                processes[-1] += [(_NO_STEP, event, times) for event, times in line["rows"]]
        total = sum(times for process in processes for _, _, times in process)
        if total > MOST_ANNOUNCED:
            raise CheckpointError(f"{self.path}: {total:,} releases beyond its ledger are more than {MOST_ANNOUNCED:,}")
        return [[(event_from_dict(event), times) for _, event, times in process] for process in processes]

    def _append(self, line: dict[str, Any]) -> None:
        line = line if self._lines else {**line, "id": self.training}
        text = json.dumps(line, sort_keys=True)
        digest, checked = _digest(self.head, text), self._checked(text)  # an unreadable line would spoil the file
        try:
            handle = open_for_appending(self.path, create=not self._size + self._torn, folder=self._folder)
        except OSError as error:
            raise CheckpointError(
                f"{self.path} cannot be written: {error.strerror}; nothing more is released"
            ) from error
        try:
            self._require_unchanged(os.fstat(handle).st_size)
            try:
                with naming(self.path):
                    self._write(handle, f"{digest} {text}\n".encode())
                self._add(checked, text, digest)
            except BaseException:
                self._read()  # an interrupt or a full disk may have left the line, or a part of it
                raise
        finally:
            os.close(handle)

    def _write(self, handle: int, line: bytes) -> None:
        content = b"\n" * self._unfinished + line
        if self._torn:  # the new line must not be glued to an incomplete one
            os.ftruncate(handle, self._size)
        written = 0
        while written < len(content):  # mostly one write: a crash can only leave a part of this line
            written += os.write(handle, content[written:])
        os.fsync(handle)
        if not self._lines:
            sync_folder(self.path.parent if self._folder is None else self._folder)
        self._size, self._torn, self._unfinished = self._size + len(content), 0, False

    def _require_unchanged(self, size: int) -> None:
        if size != self._size + self._torn:
            raise CheckpointError(
                f"{self.path} has {size:,} bytes instead of {self._size + self._torn:,}: the record of releases was "
                "removed, or changed by a different process, while it was in use, so nothing more is released. "
                "Restore the original file, or train in a different folder and keep this one"
            )

    def _read(self) -> None:
        self._size, self._torn = -1, 0  # if the reading is interrupted, nothing more can be appended
        self._lines: list[str] = []  # as text, which is much smaller than what it states
        self._violations: list[str] = []
        self._digests = [_digest("", FORMAT)]
        try:
            content = read_without_links(self.path, folder=self._folder, limit=MAX_LEDGER_BYTES)
        except FileNotFoundError:
            content = b""
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error.strerror or error}") from error
        whole, _, torn = content.rpartition(b"\n")
        for number, raw in enumerate(whole.split(b"\n") if whole else [], start=1):
            if not self._take(raw):
                raise CheckpointError(
                    f"{self.path}, line {number}: the record of releases was changed after it was written, so what was "
                    "released cannot be stated. Restore the original file, or train in a different folder and keep "
                    "this one"
                )
        # Without its newline, a line with the right digest is complete: its block may have been released.
        self._unfinished = self._take(torn)
        self._torn = 0 if self._unfinished else len(torn)
        self._size = len(content) - self._torn

    def _take(self, raw: bytes) -> bool:
        """Add the line ``raw`` if its digest is right."""
        digest, _, text = raw.decode("utf-8", "replace").partition(" ")
        if digest != _digest(self.head, text):
            return False
        self._add(self._checked(text), text, digest)
        return True

    def _add(self, line: dict[str, Any], text: str, digest: str) -> None:
        if line["kind"] == "violation":
            self._violations.append(str(line["reason"]))
        self._lines.append(text)
        self._digests.append(digest)

    def _checked(self, text: str) -> dict[str, Any]:
        """The line that ``text`` states, if it has the form of what is written here, whoever wrote it."""
        try:
            line: dict[str, Any] = parse_json(text)
            checks.one_of(_FORMS, kind=line["kind"])
            _FORMS[line["kind"]](line)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{self.path}, line {len(self._lines) + 1}: {type(error).__name__}: {error}"
            ) from error
        return line


def _digest(before: str, text: str) -> str:
    return hashlib.sha256(f"{before} {text}".encode()).hexdigest()


def _before(runs: Iterable[_Run], step: int) -> list[_Run]:
    """The steps before ``step``, and all events that are not steps."""
    kept = [(first, event, times if first == _NO_STEP else min(times, step - first)) for first, event, times in runs]
    return [run for run in kept if run[2] > 0]


def _total(line: dict[str, Any]) -> int:
    return sum(times for _, times in line.get("rows", ()))


def _check_step(line: dict[str, Any]) -> None:
    checks.non_negative_int(step=line["step"])


def _check_rows(line: dict[str, Any]) -> None:
    for event, times in line["rows"]:
        event_from_dict(event)
        checks.positive_int(times=times)
    if _total(line) > MOST_ANNOUNCED:
        raise ValueError(f"{_total(line)} releases are more than {MOST_ANNOUNCED}")


def _check_block(line: dict[str, Any]) -> None:
    _check_step(line)
    _check_rows(line)


def _check_violation(line: dict[str, Any]) -> None:
    _check_step(line)
    ViolationEvent(line["reason"])


def _check_end(line: dict[str, Any]) -> None:
    if not isinstance(line["status"], str) or not isinstance(line["ledger"], str):
        raise TypeError("status and ledger must be text")


#: What a line of each kind must hold.
_FORMS: dict[str, Callable[[dict[str, Any]], None]] = {
    "begun": _check_step,
    "block": _check_block,
    "recorded": _check_rows,
    "violation": _check_violation,
    "ended": _check_end,
}
