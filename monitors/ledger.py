"""The ledger: an append-only list of all private releases, and the single source of every epsilon."""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

from monitors import checks
from monitors.atomic import write_atomically
from monitors.comparison import apart, equal_ones_lacking, same_ones_lacking
from monitors.errors import UnsupportedEventError
from monitors.events import DisjointEvent, PrivacyEvent, event_from_dict, reasons_of
from monitors.journal import JOURNAL_NAME, ReleaseJournal
from monitors.ledger_file import FORMAT, add_announced, values_in
from monitors.locks import OwnLock
from monitors.origins import Origins, Run
from monitors.untrusted import MAX_LEDGER_BYTES, read_text

#: Shown before the reason of a violation.
VOID = "the guarantee is void"

#: Event, count, whether it is marked as lost, and the identities of the releases.
_Row = tuple[PrivacyEvent, int, bool, Iterable[Run]]


class Ledger:
    """Run-length encoded list of events: a constant schedule is one row, whatever its length. Threads may share it.

    Events are recorded before the release that they describe is used, and are never removed. Iterating yields
    ``(event, count)`` rows in the order of recording. A row may be marked as lost: an interrupted process released it,
    and the model contains nothing of it. Lost rows count towards every epsilon like all other rows.

    Args:
        notes: Statements that travel with the ledger into every report, such as "reproducible noise".

    Example:
        >>> from monitors.events import GaussianEvent, PoissonSampledEvent
        >>> ledger = Ledger().record(PoissonSampledEvent(0.01, GaussianEvent(1.0)), count=100)
        >>> ledger.total, len(ledger.rows)
        (100, 1)
    """

    def __init__(self, notes: Iterable[str] = ()) -> None:
        self._rows: list[tuple[PrivacyEvent, int]] = []
        self._lost: list[bool] = []
        self._notes: list[str] = []
        self._origins = Origins()
        self._reserved = 0
        self._violations: dict[str, None] = {}  # in the first ``_searched`` rows
        self._searched = 0
        self._listeners: list[Callable[[PrivacyEvent, int], None]] = []
        self._lock = OwnLock()
        for text in notes:
            self.add_note(text)

    def record(
        self, event: PrivacyEvent, count: int = 1, *, lost: bool = False, origins: Iterable[Run] | None = None
    ) -> Ledger:
        """Append ``count`` releases of ``event``.

        Args:
            event: What is about to be released.
            count: Number of releases, at least 1.
            lost: Mark the releases as lost.
            origins: The identities of releases that are on another ledger too (see ``Origins``). Default: new ones.

        Returns:
            The ledger itself, for chaining.

        Raises:
            UnsupportedEventError: ``event`` is not a ``PrivacyEvent``.
            ValueError: ``count`` is not an integer of at least 1.
        """
        if not isinstance(event, PrivacyEvent):
            raise UnsupportedEventError(f"only privacy events can be recorded, got {event!r} of {type(event).__name__}")
        checks.positive_int(count=count)
        with self._lock:
            for listener in self._listeners:
                listener(event, int(count))
            if self._rows and self._rows[-1][0] == event and self._lost[-1] == lost:
                self._rows[-1] = (event, self._rows[-1][1] + int(count))
            else:
                self._rows.append((event, int(count)))
                self._lost.append(bool(lost))
            if origins is None:
                self._origins.record(int(count))
            else:
                self._origins.add(origins)
        return self

    def _with_origins(self) -> list[_Row]:
        with self._lock:
            cut = self._origins.cut(count for _, count in self._rows)
            return [(*row, lost, origins) for row, lost, origins in zip(self._rows, self._lost, cut, strict=True)]

    @contextmanager
    def announcing(self, listener: Callable[[PrivacyEvent, int], None]) -> Iterator[None]:
        """Inside the block, call ``listener`` with event and count before each ``record``; copies have no listener."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    def add_note(self, text: str) -> None:
        """Attach a statement, unless it is attached already; notes are never removed."""
        if text not in self._notes:
            self._notes.append(text)

    @property
    def notes(self) -> tuple[str, ...]:
        """Statements that travel with the ledger."""
        return tuple(self._notes)

    @property
    def violations(self) -> tuple[str, ...]:
        """Distinct reasons of the violations on the ledger; any violation makes epsilon infinite.

        Example:
            >>> from monitors.events import GaussianEvent, ViolationEvent
            >>> ledger = Ledger().record(GaussianEvent(2.0), 8).record(ViolationEvent("the weights were overwritten"))
            >>> ledger.violations, ledger.head(8).violations
            (('the weights were overwritten',), ())
        """
        # Monitors ask after each step: read only the rows that were added since.
        for event, _ in self._rows[self._searched :]:
            self._violations.update(dict.fromkeys(reasons_of(event)))
        self._searched = len(self._rows)
        return tuple(self._violations)

    @property
    def caveats(self) -> tuple[str, ...]:
        """All statements that must accompany a figure of this ledger: violations first, then notes."""
        return (*(f"{VOID}: {reason}" for reason in self.violations), *self._notes)

    @property
    def rows(self) -> tuple[tuple[PrivacyEvent, int], ...]:
        """All rows, oldest first."""
        return tuple(self._rows)

    def rows_from(self, row: int) -> list[tuple[PrivacyEvent, int]]:
        """Rows from index ``row`` on: those that a reader of the earlier ones has not seen yet."""
        return self._rows[row:]

    @property
    def total(self) -> int:
        """Number of releases, including repeated ones."""
        return sum(count for _, count in self._rows)

    @property
    def marks(self) -> tuple[bool, ...]:
        """For each row, whether it is marked as lost."""
        return tuple(self._lost)

    @property
    def lost(self) -> Ledger:
        """A new ledger of the rows marked as lost, without notes."""
        return self._marked(True)

    @property
    def kept(self) -> Ledger:
        """A new ledger of the rows not marked as lost, which made the model. It does not state all that was spent.

        Example:
            >>> from monitors.events import GaussianEvent
            >>> ledger = Ledger().record(GaussianEvent(2.0), 8).record(GaussianEvent(2.0), 3, lost=True)
            >>> ledger.total, ledger.kept.total, ledger.lost.total
            (11, 8, 3)
        """
        return self._marked(False)

    def head(self, count: int) -> Ledger:
        """A new ledger of the first ``count`` releases, or of all if there are fewer, with the notes.

        Example:
            >>> from monitors.events import GaussianEvent
            >>> Ledger().record(GaussianEvent(2.0), 8).record(GaussianEvent(3.0), 2).head(9).rows[-1]
            (GaussianEvent(noise_multiplier=3.0), 1)
        """
        checks.non_negative_int(count=count)
        ends = list(accumulate(repeats for _, repeats in self._rows))
        whole, found = bisect_right(ends, count), Ledger(self._notes)
        found._rows, found._lost = self._rows[:whole], self._lost[:whole]
        missing = count - (ends[whole - 1] if whole else 0)
        if missing and whole < len(ends):
            found.record(self._rows[whole][0], missing, lost=self._lost[whole], origins=())
        found._origins.add(next(self._origins.cut([found.total])))
        return found

    @property
    def next_partition(self) -> int:
        """The smallest partition number above all used and reserved ones (see ``DisjointEvent``)."""
        used = [event.partition for event, _ in self._rows if isinstance(event, DisjointEvent)]
        return max(max(used, default=-1) + 1, self._reserved)

    def reserve_partitions(self, count: int) -> int:
        """Reserve ``count`` partition numbers for a run that is about to record here, and return the first.

        Otherwise, two runs that record on one ledger at the same time would use the same numbers and be charged as one.

        Example:
            >>> ledger = Ledger()
            >>> ledger.reserve_partitions(3), ledger.next_partition
            (0, 3)
        """
        checks.positive_int(count=count)
        with self._lock:
            first = self.next_partition
            self._reserved = first + count
        return first

    def merge(self, *others: Ledger) -> Ledger:
        """A new ledger for several runs on one data set: all rows, with the partitions of ``others`` renumbered.

        Example:
            >>> from monitors.events import GaussianEvent
            >>> first, second = Ledger().record(GaussianEvent(2.0)), Ledger().record(GaussianEvent(3.0))
            >>> first.merge(second).total
            2
        """
        merged = Ledger().extend(self)
        for other in others:
            merged.extend(other)
        return merged

    def extend(self, other: Ledger, shift: int | None = None) -> Ledger:
        """Append all rows and notes of ``other``.

        Args:
            other: The ledger to append.
            shift: Added to the partition numbers of ``other``, because releases of different runs or processes must
                not share a partition. Default: ``next_partition``.

        Returns:
            The ledger itself, for chaining.
        """
        rows = other._with_origins()
        with self._lock:
            added = self.next_partition if shift is None else shift
            for event, count, lost, origins in rows:
                moved = event.in_partition(event.partition + added) if isinstance(event, DisjointEvent) else event
                self.record(moved, count, lost=lost, origins=origins)
        for text in other.notes:
            self.add_note(text)
        return self

    def copy(self) -> Ledger:
        """An independent ledger with the same rows and notes."""
        return self.merge()

    def covers(self, other: Ledger) -> bool:
        """Whether this ledger has an equal for each release of ``other``, and so costs at least as much.

        Equal releases may be different ones: ``holds`` tells whether they are the same.

        Example:
            >>> from monitors.events import GaussianEvent
            >>> one, more = Ledger().record(GaussianEvent(2.0), 3), Ledger().record(GaussianEvent(2.0), 5)
            >>> more.covers(one), one.covers(more)
            (True, False)
        """
        return not equal_ones_lacking(other, self)

    def beyond(self, other: Ledger) -> Ledger:
        """A new ledger of the releases that have no equal on ``other``, each disjoint one in a separate partition.

        Example:
            >>> from monitors.events import GaussianEvent
            >>> one, more = Ledger().record(GaussianEvent(2.0), 3), Ledger().record(GaussianEvent(2.0), 5)
            >>> more.beyond(one).total, one.beyond(more).total
            (2, 0)
        """
        found = Ledger()
        for event, count in apart(equal_ones_lacking(self, other)):
            found.record(event, count)
        return found

    def holds(self, other: Ledger) -> bool:
        """Whether each release of ``other`` is on this ledger itself, as on a copy, a merged ledger or a file of it.

        Example:
            >>> from monitors.events import GaussianEvent
            >>> one, equal = Ledger().record(GaussianEvent(2.0)), Ledger().record(GaussianEvent(2.0))
            >>> one.merge(equal).holds(equal), one.copy().holds(one), one.holds(equal)
            (True, True, False)
        """
        return not other.number_outside(self)

    def number_outside(self, other: Ledger) -> int:
        """Number of releases that are not on ``other`` themselves, whatever equal ones it has.

        Releases of ``other`` from a file of an older version are known by their events only.
        """
        return sum(count for _, count in same_ones_lacking(self, self._origins, other, other._origins))

    @property
    def origins(self) -> tuple[Run, ...]:
        """The identities of the releases, which ``from_rows`` reads (see ``Origins``)."""
        return self._origins.runs

    def digest(self) -> str:
        """SHA-256 of rows and notes, as hex; ledgers with equal digests have equal rows and notes."""
        return _digest(self._content())

    def to_json(self) -> str:
        """The ledger as JSON text: format, rows, notes, digest, and the identities of the releases."""
        return self._text()

    @classmethod
    def from_json(cls, text: str) -> Ledger:
        """Read a ledger that ``to_json`` wrote.

        Raises:
            ValueError: Not a ledger, damaged, changed since it was written, or not complete without its journal.
        """
        ledger, head, complete = cls._parsed(text)
        if head is not None and not complete:
            raise ValueError(
                f"the training of this ledger is under way or was killed, and {JOURNAL_NAME} beside the file states "
                "its latest releases: read the file in its folder, with Ledger.load(path)"
            )
        return ledger

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        journal: str | None = None,
        complete: bool = False,
        folder: int | None = None,
    ) -> None:
        """Write the ledger to ``path`` atomically and flush it to the disk.

        Args:
            path: The file.
            journal: The ``head`` of the ``ReleaseJournal`` in the same folder, for the ledger of a training. ``load``
                then adds what the journal announced since, and refuses a journal of a different training. None: the
                ledger stands alone.
            complete: Whether nothing more will be released, so that a copy can be read without the journal.
            folder: Handle of the open folder of ``path``, which then stays the same folder if it is moved.
        """
        write_atomically(path, self._text(journal, complete), folder=folder)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, alone: bool = True) -> Ledger:
        """Read a ledger that ``save`` wrote; if its training is under way or was killed, with all that it announced.

        Args:
            path: The file.
            alone: Whether the complete ledger of a training may be read without the journal beside it.

        Raises:
            ValueError: The file is not an unchanged ledger, or contradicts the journal beside it, or the journal is
                missing or changed; the path is named.
        """
        file, beside, text = Path(path), Path(path).with_name(JOURNAL_NAME), None
        try:
            # A training that is running may write both files meanwhile: the journal must be of the time of the ledger.
            while text != (text := read_text(file, MAX_LEDGER_BYTES)):
                journal = ReleaseJournal(beside)
            ledger, head, complete = cls._parsed(text)
            if beside.exists() or (head is not None and not (alone and complete)):
                add_announced(ledger, journal, head)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from error
        return ledger

    @classmethod
    def _parsed(cls, text: str) -> tuple[Ledger, str | None, bool]:
        values = values_in(text)
        ledger, head = cls.from_rows(values.get("rows", ()), values.get("notes", ())), values.get("journal")
        complete = values.get("complete") is True
        found = _digest(ledger._content(head, complete))
        if found != values.get("digest"):
            raise ValueError(
                f"the ledger was changed after it was written: digest {checks.shown(values.get('digest'))} is stated, "
                f"its rows give {found!r}. Restore the original file; epsilon cannot be stated from this one."
            )
        ledger._origins = Origins.read(values.get("origins"), ledger.total)
        return ledger, head, complete

    def row_dicts(self, row: int = 0) -> list[dict[str, Any]]:
        """Rows from index ``row`` on as plain JSON values, which ``from_rows`` reads."""
        pairs = zip(self._rows[row:], self._lost[row:], strict=True)
        return [{"event": event.to_dict(), "count": n} | ({"lost": True} if lost else {}) for (event, n), lost in pairs]

    @classmethod
    def from_rows(
        cls, rows: Iterable[Mapping[str, Any]], notes: Iterable[str] = (), origins: Iterable[Any] | None = None
    ) -> Ledger:
        """A ledger built from the output of ``row_dicts`` and of ``origins``, if they are known.

        Raises:
            ValueError, KeyError, TypeError: A row is malformed.
        """
        if not isinstance(notes, (list, tuple)) or not all(isinstance(note, str) for note in notes):
            raise TypeError(f"the notes must be a list of texts, got {checks.shown(notes)}")
        ledger = cls(notes)
        for row in rows:
            if not isinstance(row, Mapping) or not isinstance(row.get("lost", False), bool):
                raise TypeError(f"a row must be a mapping of event, count and lost, got {checks.shown(row)}")
            ledger.record(event_from_dict(row["event"]), row["count"], lost=row.get("lost", False), origins=())
        ledger._origins = Origins.read(origins, ledger.total)
        return ledger

    def _marked(self, lost: bool) -> Ledger:
        found = Ledger()
        for event, count, mark, origins in self._with_origins():
            if mark == lost:
                found.record(event, count, origins=origins)
        return found

    def _content(self, journal: str | None = None, complete: bool = False) -> dict[str, Any]:
        bound = {} if journal is None else {"journal": journal} | ({"complete": True} if complete else {})
        return {"rows": self.row_dicts(), "notes": self._notes} | bound

    def _text(self, journal: str | None = None, complete: bool = False) -> str:
        with self._lock:
            content, origins = self._content(journal, complete), self.origins
        # Origins are outside of the digest: earlier versions read the file too.
        return json.dumps({"format": FORMAT, **content, "digest": _digest(content), "origins": origins}, indent=1)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_listeners": []}  # a copy must not write into the journal of the original

    def __iter__(self) -> Iterator[tuple[PrivacyEvent, int]]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __eq__(self, other: object) -> bool:
        own = self._rows, self._lost, self._notes
        return isinstance(other, Ledger) and own == (other._rows, other._lost, other._notes)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Ledger({self.total} releases in {len(self)} rows)"


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
