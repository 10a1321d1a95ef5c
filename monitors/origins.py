"""Which release is which: the identity that copies, merges and files of a ledger keep, whatever its events are."""

from __future__ import annotations

import os
import secrets
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from monitors import checks

#: Successive releases: where they were recorded first (None: unknown), the number of the first one there, their count.
Run = tuple[str | None, int, int]

#: Origin -> disjoint half-open ranges of numbers.
_Spans = dict[str | None, list[tuple[int, int]]]


class Origins:
    """The identities of the releases of a ledger, in order.

    Events do not identify a release: two queries with equal noise are two releases. A release is known by the ledger
    that recorded it first and by its number there. Releases in a file of an older version have no identity.

    Args:
        runs: The identities of the releases so far.

    Example:
        >>> own = Origins()
        >>> own.record(3)
        >>> copied = Origins(own.runs)
        >>> copied.record(2)
        >>> list(copied.missing([1, 4], own)), list(own.missing([3], copied))
        ([0, 2], [0])
    """

    def __init__(self, runs: Iterable[Run] = ()) -> None:
        self._runs: list[Run] = list(runs)
        self._own: tuple[int, str] | None = None
        self._recorded = 0

    @classmethod
    def read(cls, values: Any, total: int) -> Origins:
        """The identities of ``total`` releases in a file: ``runs`` as JSON, or None if it states none.

        Raises:
            ValueError: They are not those of ``total`` releases.
        """
        if values is None:
            return cls([(None, 0, total)] if total else ())
        if not isinstance(values, (list, tuple)) or not all(map(_is_run, values)):
            raise ValueError(f"the origins of its releases are malformed, got {checks.shown(values)}")
        found = cls((origin, first, count) for origin, first, count in values)
        stated = sum(count for _, _, count in found._runs)
        if stated != total:
            raise ValueError(f"it states the origins of {stated:,} releases and holds {total:,}")
        return found

    @property
    def runs(self) -> tuple[Run, ...]:
        """The identities, run-length encoded."""
        return tuple(self._runs)

    def record(self, count: int) -> None:
        """Append ``count`` new releases."""
        process = os.getpid()
        if self._own is None or self._own[0] != process:  # a fork releases something else than its parent
            self._own, self._recorded = (process, secrets.token_hex(8)), 0
        self.add([(self._own[1], self._recorded, count)])
        self._recorded += count

    def add(self, runs: Iterable[Run]) -> None:
        """Append releases that were recorded elsewhere."""
        for origin, first, count in runs:
            last, start, length = self._runs[-1] if self._runs else (None, 0, 0)
            if length and last == origin and (origin is None or start + length == first):
                self._runs[-1] = (origin, start, length + count)
            else:
                self._runs.append((origin, first, count))

    def cut(self, counts: Iterable[int]) -> Iterator[list[Run]]:
        """The identities of stretches of ``counts`` releases, one after the other."""
        ahead = iter(self.runs)
        origin, first, left = next(ahead, (None, 0, 0))
        for count in counts:
            found: list[Run] = []
            while count:
                if not left:
                    origin, first, left = next(ahead)
                taken = min(count, left)
                found.append((origin, first, taken))
                first, left, count = first + taken, left - taken, count - taken
            yield found

    def stretch(self, first: int, count: int) -> tuple[Run, ...]:
        """The identities of ``count`` releases after the first ``first``.

        Example:
            >>> Origins([("a", 0, 3), ("b", 5, 2)]).stretch(2, 2)
            (('a', 2, 1), ('b', 5, 1))
        """
        _, runs = self.cut([first, count])
        return tuple(runs)

    def missing(self, counts: Iterable[int], other: Origins) -> Iterator[int]:
        """For stretches of ``counts`` releases, how many of them ``other`` is not known to hold."""
        spans = other._spans()
        for runs in self.cut(counts):
            yield sum(count - _overlap(first, first + count, spans.get(origin, ())) for origin, first, count in runs)

    def unknown(self, counts: Iterable[int]) -> Iterator[int]:
        """For stretches of ``counts`` releases, how many of them have no identity."""
        for runs in self.cut(counts):
            yield sum(count for origin, _, count in runs if origin is None)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_own": None}  # what a copy records is not what the original records

    def _spans(self) -> _Spans:
        spans: _Spans = defaultdict(list)
        for origin, first, count in sorted((run for run in self._runs if run[0] is not None), key=lambda run: run[1]):
            known = spans[origin]
            if known and first <= known[-1][1]:
                known[-1] = (known[-1][0], max(known[-1][1], first + count))
            else:
                known.append((first, first + count))
        return spans


def _overlap(first: int, end: int, spans: Iterable[tuple[int, int]]) -> int:
    return sum(max(0, min(end, stop) - max(first, start)) for start, stop in spans)


def _is_run(value: Any) -> bool:
    if not isinstance(value, (list, tuple)) or len(value) != 3:
        return False
    origin, first, count = value
    whole = all(isinstance(number, int) and not isinstance(number, bool) for number in (first, count))
    return whole and first >= 0 and count >= 1 and (origin is None or isinstance(origin, str))
