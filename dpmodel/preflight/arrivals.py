"""Examples of a stream that arrive more than once."""

from __future__ import annotations

import os
from array import array
from typing import Any

import numpy as np

from dpmodel.data.loader import PrivateLoader
from dpmodel.preflight.readings import digest
from dpmodel.preflight.repeats import MIN_DISTINCT, Rows, equal_rows, repetition
from monitors.errors import DataError

#: Bytes that are kept of the digest of an example.
_BYTES = 8


class Arrivals:
    """Compares the examples of a stream as they arrive, as ``require_separate_rows`` compares rows in memory.

    Guarantee: no example is held, only 16 bytes for each; a search for a pattern among equal examples needs more for a
    moment. Objects other than tensors, arrays, numbers, strings, images and containers of these cannot be compared and
    count as different.

    Example:
        >>> arrivals = Arrivals()
        >>> for number in [*range(50), *range(50)]:
        ...     arrivals.add(number)
        >>> arrivals.check()
        Traceback (most recent call last):
            ...
        monitors.errors.DataError: the stream gives its examples more than once: rows 0 to 49 occur again 50 rows ...
    """

    def __init__(self) -> None:
        self._order = array("q")
        self._known: list[Rows] = []  # different values in sorted blocks, each more than twice as long as the next
        self._compared = 0
        self._equal = 0
        self._next = MIN_DISTINCT

    def add(self, example: Any) -> None:
        """See the next example."""
        found = digest(example)
        value = os.urandom(_BYTES) if found is None else found[:_BYTES]
        self._order.append(int.from_bytes(value, "little", signed=True))

    def check(self, *, last: bool = False) -> None:
        """Compare the examples that have arrived since the last check with all before and with each other.

        A pattern is searched for whenever the number of equal examples has doubled, and at the end.

        Args:
            last: Whether no other example follows.

        Raises:
            DataError: A wrapper repeats examples; says how.
        """
        arrived = len(self._order) - self._compared
        new: Rows = np.unique(np.array(self._order[self._compared :], dtype=np.int64))
        for block in self._known:
            new = new[block[np.searchsorted(block, new).clip(max=len(block) - 1)] != new]
        self._compared, self._equal = len(self._order), self._equal + arrived - len(new)
        self._insert(new)
        if self._equal >= self._next or (last and self._equal >= MIN_DISTINCT):
            self._next = 2 * self._equal
            self._require_no_pattern()

    def told(self) -> str | None:
        """A private note about equal examples, for the user who trains; None if there are none."""
        if not self._equal:
            return None
        return (
            f"{equal_rows(self._all()):,} of {len(self._order):,} examples of the stream equal some other one. If they "
            "are records of one person, the epsilon of that person is larger, as for a group"
        )

    def _all(self) -> Rows:
        return np.array(self._order, dtype=np.int64)

    def _insert(self, new: Rows) -> None:
        if len(new):
            self._known.append(new)
        while len(self._known) > 1 and len(self._known[-2]) <= 2 * len(self._known[-1]):
            self._known[-2:] = [np.sort(np.concatenate(self._known[-2:]))]

    def _require_no_pattern(self) -> None:
        values = self._all()
        # The last example may be about to repeat.
        ended = int(np.flatnonzero(values != values[-1])[-1:].sum()) + 1
        repeated = repetition(values) or repetition(values[:ended])
        if repeated is not None:
            raise DataError(
                f"the stream gives its examples more than once: {repeated}. A record would be in several steps, but "
                "the ledger accounts for one. Let each example arrive once (to weight a class, weight its loss)"
            )


def require_separate_arrivals(loader: PrivateLoader) -> None:
    """Refuse a stream whose first examples repeat, and compare all others as they arrive.

    Not checked for a stream, whose examples are read once: whether an example depends on the examples before it, or
    changes when it is read again, and whether one stored record is in several examples (windows, mixup).

    Args:
        loader: Of a stream; it gets the watch.

    Raises:
        DataError: The first examples repeat.
    """
    stream, arrivals = loader.stream, Arrivals()
    assert stream is not None
    for row in range(stream.readable):
        arrivals.add(stream[row])
    arrivals.check()
    stream.watch = arrivals
