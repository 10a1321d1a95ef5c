"""Stored rows that reach several examples."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
import torch

from dpmodel.preflight.readings import Readings
from dpmodel.preflight.stores import Row, Store, Watch

#: Rows that several examples read, and rows of a container read as a whole, that are replaced on trial.
_TRIED = 24
_TRIED_WHOLE = 4

#: Examples that are read because a different example reads the row with their number.
_FOLLOWED = 64

#: Largest container, in bytes, of which a changed copy is made.
_MOST_BYTES = 2**26


class Sharing:
    """Finds stored rows that reach several examples.

    A row that several examples read is replaced with a different row, and they are read again: they depend on it if
    they change. Rows in files, and values computed from several rows earlier, are not seen.

    Args:
        readings: Readings of the data set.
        watch: Records the stored rows that are read.
        draw: Chooses the replacement of a row.
    """

    def __init__(self, readings: Readings, watch: Watch, draw: np.random.Generator) -> None:
        self._readings, self._watch, self._draw = readings, watch, draw
        self._by_row: dict[Row, tuple[Store, list[int]]] = {}
        self._whole: dict[int, tuple[Store, list[int]]] = {}
        self._partners: list[int] = []

    def find(self, rows: Iterable[int], size: int) -> str | None:
        """How two examples share a stored row, in words, or None; reads ``rows`` in this order while time allows.

        Args:
            rows: Numbers of examples.
            size: Length of the data set.
        """
        with self._recording():
            self._readings.read(rows)
            self._readings.read([row for row in dict.fromkeys(self._partners) if row < size][:_FOLLOWED])
        shared = [(key, store, readers) for key, (store, readers) in self._by_row.items() if len(readers) > 1]
        for key, store, readers in shared[:_TRIED]:
            if self._both_change(store, key, readers[:2]):
                return _words(readers, store)
        for store, readers in self._whole.values():
            changed = self._change_with_one(store, readers)
            if changed:
                return _words(changed, store)
        return None

    @contextmanager
    def _recording(self) -> Iterator[None]:
        current: int | None = None

        def keep(row: int | None) -> None:
            nonlocal current
            if row is None and current is not None:
                self._keep(current)
            current = row
            self._watch.clear()

        self._readings.watch = keep
        try:
            yield
        finally:
            self._readings.watch = lambda row: None

    def _keep(self, row: int) -> None:
        numbers: dict[int, list[int]] = {}
        for key, (store, number) in self._watch.rows.items():
            self._by_row.setdefault(key, (store, []))[1].append(row)
            numbers.setdefault(id(store), []).append(number)
        for identity, store in self._watch.whole.items():
            self._whole.setdefault(identity, (store, []))[1].append(row)
        self._partners += chain.from_iterable(few for few in numbers.values() if 1 < len(few) < _FOLLOWED)

    def _both_change(self, store: Store, key: Row, pair: list[int]) -> bool:
        before = self._steady(pair)
        for shown in self._draw.integers(store.size, size=8).tolist() if before else []:
            self._watch.shown = (key, shown)
            try:
                after = [self._readings.again(row) for row in pair]
            finally:
                self._watch.shown = None
            if None not in after and all(new != old for new, old in zip(after, before, strict=True)):
                return True
        return False

    def _change_with_one(self, store: Store, readers: list[int]) -> list[int]:
        """Two examples that change with one row of a container that both read as a whole."""
        some = readers[: 2 * _TRIED_WHOLE]
        before = self._steady(some)
        for row in some[:_TRIED_WHOLE] if before else []:
            altered = _altered(store.value, row)
            if altered is None:
                break
            self._watch.altered = (store, altered)
            try:
                after = [self._readings.again(reader) for reader in some]
            finally:
                self._watch.altered = None
            changed = [reader for reader, new, old in zip(some, after, before, strict=True) if new not in (old, None)]
            if len(changed) > 1:
                return changed
        return []

    def _steady(self, rows: list[int]) -> list[bytes | None]:
        """The digests of the examples; empty if one differs from reading to reading."""
        before = [self._readings[row] for row in rows]
        return [] if None in before or [self._readings.again(row) for row in rows] != before else before


def _words(readers: list[int], store: Store) -> str:
    return f"examples {readers[0]} and {readers[1]} both change when one row of {store.name!r} is replaced"


def _altered(value: Any, row: int) -> Any:
    """A copy of a container with an unusual row; None if it is too large or holds no numbers."""
    if row >= len(value):
        return None
    if isinstance(value, list):
        other = copy.copy(value)
        other[row] = value[(row + len(value) // 2) % len(value)]
        return other
    array = value if isinstance(value, np.ndarray) else value.numpy(force=True)
    if array.nbytes > _MOST_BYTES or array.dtype.kind not in "fiu":
        return None
    array = array.copy()
    array[row] = array.max() if array.dtype.kind in "iu" else 2 * np.abs(array).max() + 1
    return array if isinstance(value, np.ndarray) else torch.from_numpy(array).to(value.device)
