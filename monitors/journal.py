"""The append-only journal of what a training is about to release, so that a killed process is charged in full."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from itertools import chain, count, groupby, repeat
from pathlib import Path
from typing import Any

from monitors import checks
from monitors.atomic import sync_folder
from monitors.errors import CheckpointError
from monitors.events import PrivacyEvent, ViolationEvent, event_from_dict
from monitors.untrusted import MAX_LEDGER_BYTES, parse_json, read_untrusted

#: Name of the journal; it lies beside the ledger that it runs ahead of.
JOURNAL_NAME = "releases.jsonl"

#: Most equal events of one line: far more than a block of steps.
MOST_ANNOUNCED = 10**7

#: First link of the chain of digests.
FORMAT = "dpmodel-releases/2"


class ReleaseJournal:
    """A file of lines, each flushed to the disk before what it announces takes place.

    ``begun``: a process starts at ``step``; of what was announced before, only the first ``step`` steps are part of its
    training. ``block``: the steps from ``step`` on are about to be released, with these events. ``violation``: the
    claim is void for this reason.

    Guarantee: a step is released only after the line of its block is on the disk. A file that states what was released
    up to a moment between two steps names the ``head`` of that moment; ``announced(head)`` is at least what was
    released since, whenever the process was killed. Each line carries a digest over all lines before it, so a changed
    file is refused. An incomplete last line belongs to a block that had not begun and is ignored.

    Args:
        path: The file; the first line creates it.

    Raises:
        CheckpointError: The file was changed after it was written; the line is named.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lines: list[dict[str, Any]] = []
        self._digests = [_digest("", FORMAT)]
        self._torn = 0
        if self.path.is_file():
            self._read()

    @property
    def head(self) -> str:
        """Digest over all lines."""
        return self._digests[-1]

    def follows(self, head: str) -> bool:
        """Whether the journal once had this ``head`` and has only grown since."""
        return head in self._digests

    def begin(self, step: int) -> None:
        """State that a process starts at ``step``; steps announced beyond it by earlier processes are lost."""
        self._append({"kind": "begun", "step": step})

    def announce(self, step: int, events: Iterable[PrivacyEvent]) -> None:
        """Announce the release of ``events``, one per step, from step number ``step`` on."""
        rows = [[event.to_dict(), len(list(same))] for event, same in groupby(events)]
        self._append({"kind": "block", "step": step, "rows": rows})

    def violate(self, step: int, reason: str) -> None:
        """State that the claim was found to be void when ``step`` steps were done."""
        self._append({"kind": "violation", "step": step, "reason": reason})

    @property
    def violations(self) -> tuple[str, ...]:
        """Reasons of the violations."""
        return tuple(str(line["reason"]) for line in self._lines if line["kind"] == "violation")

    def announced(self, head: str) -> list[list[PrivacyEvent]]:
        """Events announced since the journal had this ``head``: one list per process, possibly empty, oldest first.

        The first list belongs to the process that was running at that moment. Different processes release different
        things, even for the same step.
        """
        processes: list[list[tuple[int, PrivacyEvent]]] = [[]]
        for line in self._lines[self._digests.index(head) :]:
            if line["kind"] == "begun":
                processes.append([])
            elif line["kind"] == "block":
                # The process announces the rest of a block again when its schedule changes: those steps had not begun.
                earlier = [entry for entry in processes[-1] if entry[0] < line["step"]]
                processes[-1] = [*earlier, *zip(count(line["step"]), _events(line["rows"]), strict=False)]
        return [[event for _, event in process] for process in processes]

    def _append(self, line: dict[str, Any]) -> None:
        text = json.dumps(line, sort_keys=True)
        digest = _digest(self.head, text)
        with self.path.open("ab") as stream:
            if self._torn:  # the new line must not be glued to an incomplete one
                stream.truncate(stream.seek(0, os.SEEK_END) - self._torn)
            stream.write(f"{digest} {text}\n".encode())  # one write: a crash can only leave a part of this line
            stream.flush()
            os.fsync(stream.fileno())
        if not self._lines:
            sync_folder(self.path.parent)
        self._torn = 0
        self._lines.append(line)
        self._digests.append(digest)

    def _read(self) -> None:
        try:
            whole, _, torn = read_untrusted(self.path, MAX_LEDGER_BYTES).rpartition(b"\n")
        except (OSError, ValueError) as error:
            raise CheckpointError(f"the record of releases cannot be read: {error}") from error
        for number, raw in enumerate(whole.split(b"\n") if whole else [], start=1):
            digest, _, text = raw.decode("utf-8", "replace").partition(" ")
            if digest != _digest(self.head, text):
                raise CheckpointError(
                    f"{self.path}, line {number}: the record of releases was changed after it was written, so what was "
                    "released cannot be stated. Restore the original file, or train in a different folder and keep "
                    "this one"
                )
            self._lines.append(self._checked(text, number))
            self._digests.append(digest)
        self._torn = len(torn)

    def _checked(self, text: str, number: int) -> dict[str, Any]:
        """The line that ``text`` states, if it has the form of what is written here, whoever wrote it."""
        try:
            line: dict[str, Any] = parse_json(text)
            checks.non_negative_int(step=line["step"])
            checks.one_of(("begun", "block", "violation"), kind=line["kind"])
            if line["kind"] == "violation":
                ViolationEvent(line["reason"])
            for event, times in line["rows"] if line["kind"] == "block" else ():
                event_from_dict(event)
                checks.positive_int(times=times)
                if times > MOST_ANNOUNCED:
                    raise ValueError(f"{times} equal releases are more than {MOST_ANNOUNCED}")
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{self.path}, line {number}: {type(error).__name__}: {error}") from error
        return line


def _digest(before: str, text: str) -> str:
    return hashlib.sha256(f"{before} {text}".encode()).hexdigest()


def _events(rows: Sequence[tuple[dict[str, Any], int]]) -> Iterable[PrivacyEvent]:
    return chain.from_iterable(repeat(event_from_dict(values), times) for values, times in rows)
