"""The append-only record of what a training begins to release, so that a killed process is charged in full."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from itertools import count, repeat
from pathlib import Path
from typing import Any

from monitors.atomic import sync_folder
from monitors.errors import CheckpointError
from monitors.events import PrivacyEvent, event_from_dict
from monitors.ledger import Ledger

#: What the chain of digests begins with.
FORMAT = "dpmodel-releases/1"


class ReleaseJournal:
    """A file of lines, each flushed to the disk before what it announces takes place.

    ``block``: the steps from ``step`` on are about to be released, with these events. ``saved``: the training rests at
    ``step``, and nothing beyond it was released. ``resumed``: it goes on from the state that was saved at ``step``;
    what was announced beyond it is lost. ``violation``: its claim is void for this reason; it is never resumed.

    Guarantees: a step is never released before the line of its block is on the disk. So whatever instant a process is
    killed at, ``lost`` states at least what it released beyond the state that survives; of the block that was
    running, all steps. Each line carries a digest over all lines before it: a file that was changed is refused. An
    unfinished last line is that of a block that had not begun.

    Args:
        path: The file; made by the first line.

    Raises:
        CheckpointError: The file was changed after it was written; the line is named.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lines: list[dict[str, Any]] = []
        self._digests = [_digest("", FORMAT)]
        if self.path.is_file():
            self._read()

    @property
    def head(self) -> str:
        """Digest over all lines."""
        return self._digests[-1]

    def follows(self, head: str) -> bool:
        """Whether the journal once had that ``head`` and was only added to since."""
        return head in self._digests

    def __len__(self) -> int:
        return len(self._lines)

    def begin_block(self, step: int, events: Iterable[PrivacyEvent]) -> None:
        """Announce the release of ``events``, one per step, from step number ``step`` on."""
        announced = Ledger()
        for event in events:
            announced.record(event)
        self._append({"kind": "block", "step": step, "rows": [[event.to_dict(), times] for event, times in announced]})

    def rest(self, step: int) -> None:
        """State that nothing beyond the first ``step`` steps was released; the state must be on the disk already."""
        self._append({"kind": "saved", "step": step})

    def resume(self, step: int) -> None:
        """State that the training goes on from the state at ``step``, and everything announced beyond it is lost."""
        self._append({"kind": "resumed", "step": step})

    def violate(self, step: int, reason: str) -> None:
        """State that the claim was found to be void when ``step`` steps were done."""
        self._append({"kind": "violation", "step": step, "reason": reason})

    @property
    def violations(self) -> tuple[str, ...]:
        """Reasons of the violations."""
        return tuple(str(line["reason"]) for line in self._lines if line["kind"] == "violation")

    def lost(self, since: str | None = None) -> list[Ledger]:
        """What was announced and is no part of the training that goes on: a ledger for each process that lost steps.

        Their rows are marked as lost. They are different releases, and under shuffled batches of different epochs.

        Args:
            since: Leave out what was lost before the journal had this head; None: nothing.
        """
        segments: list[Ledger] = []
        announced: list[tuple[int, PrivacyEvent]] = []
        known = 0 if since is None else self._digests.index(since)
        for number, line in enumerate(self._lines):
            step = int(line["step"])
            if line["kind"] == "block":
                # Steps from here on that an earlier block announced had not begun: it was written for another schedule.
                announced = [entry for entry in announced if entry[0] < step]
                announced += zip(count(step), _events(line["rows"]), strict=False)
                continue
            if line["kind"] == "violation":
                continue
            gone = [event for at, event in announced if at >= step]
            if line["kind"] == "resumed" and number >= known and gone:
                segments.append(Ledger())
                for event in gone:
                    segments[-1].record(event, lost=True)
            announced = [entry for entry in announced if entry[0] < step]
        return segments

    def _append(self, line: dict[str, Any]) -> None:
        text = json.dumps(line, sort_keys=True)
        digest = _digest(self.head, text)
        # One write, one line: a crash can leave a part of the last line only.
        with self.path.open("ab") as stream:
            stream.write(f"{digest} {text}\n".encode())
            stream.flush()
            os.fsync(stream.fileno())
        if not self._lines:
            sync_folder(self.path.parent)
        self._lines.append(line)
        self._digests.append(digest)

    def _read(self) -> None:
        content = self.path.read_bytes()
        whole, _, torn = content.rpartition(b"\n")
        for number, raw in enumerate(whole.split(b"\n") if whole else [], start=1):
            digest, _, text = raw.decode("utf-8", "replace").partition(" ")
            if digest != _digest(self.head, text):
                raise CheckpointError(
                    f"{self.path}, line {number}: the record of releases was changed after it was written; what was "
                    "lost cannot be stated. Restore the original file, or train in another folder and keep this one"
                )
            self._lines.append(json.loads(text))
            self._digests.append(digest)
        if torn:
            # The next line must not be glued to the torn one.
            with self.path.open("r+b") as stream:
                stream.truncate(len(content) - len(torn))


def _digest(before: str, text: str) -> str:
    return hashlib.sha256(f"{before} {text}".encode()).hexdigest()


def _events(rows: Iterable[tuple[dict[str, Any], int]]) -> Iterator[PrivacyEvent]:
    for values, times in rows:
        yield from repeat(event_from_dict(values), times)
