"""The part of a logical batch that one rank computes; all ranks draw the whole batch from one stream."""

from __future__ import annotations

import hashlib
import math
from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from dpmodel.distributed.ranks import ALONE, Ranks
from mechanisms.sampling import likely_most

if TYPE_CHECKING:
    from mechanisms.sampling import Sampler
    from mechanisms.units import ClippedUnit

#: The usual number of rows lies this many standard deviations above the mean: 2 % of the steps exceed it.
USUAL_DEVIATIONS = 2.0


class SharedRows:
    """Draws each logical batch like a single process, and keeps the units of one rank.

    Guarantee: whether a row is drawn depends neither on the number of ranks nor on the rank that computes it. The
    streams of all ranks have one key, each rank draws all coins, and the batches are compared. A unit is never split.

    Args:
        sampler: Draws the logical batch; its stream must have the same key and position on every rank.
        unit: The clipped unit.
        ranks: The processes that train together.

    Example:
        >>> from mechanisms import ClippedUnit, PoissonSampler
        >>> drawn = SharedRows(PoissonSampler(4, 4), ClippedUnit(1, 4))
        >>> drawn.rows(0).tolist(), drawn.take()
        ([0, 1, 2, 3], None)
    """

    def __init__(self, sampler: Sampler, unit: ClippedUnit, ranks: Ranks = ALONE) -> None:
        self.sampler, self.unit, self.ranks = sampler, unit, ranks
        # Worker processes fetch ahead: several batches may be drawn before the first is used.
        self._drawn: deque[tuple[str, np.ndarray | None]] = deque()

    def rows(self, step: int) -> np.ndarray:
        """This rank's rows of ``step``, possibly none."""
        rows, rank, size = self.sampler.rows(step), self.ranks.rank, self.ranks.size
        ids = self.sampler.group_ids(len(rows), self.unit.expected_units) if self.unit.grouped else None
        self._drawn.append((self._digest(rows, ids), None if ids is None else ids[ids % size == rank] // size))
        return rows[rank::size] if ids is None else rows[ids % size == rank]

    def take(self) -> np.ndarray | None:
        """The group of each row of the oldest batch not taken yet, from 0 within this rank; None without groups."""
        digest, ids = self._drawn.popleft()
        self.ranks.same("the rows of the batch", digest, shown=False)
        return ids

    @property
    def units(self) -> int:
        """Number of groups of this rank in each batch."""
        return len(range(self.ranks.rank, self.unit.expected_units, self.ranks.size))

    @property
    def capacity(self) -> int:
        """Number of rows of this rank that a step never or hardly ever exceeds."""
        sampler, size = self.sampler, self.ranks.size
        if size == 1 or not self.unit.grouped:
            return -(-sampler.capacity // size)
        mean = sampler.batch_size * self.units / self.unit.expected_units
        return max(1, min(sampler.capacity, likely_most(mean, mean)))

    @property
    def usual(self) -> int:
        """Number of rows of this rank that few steps exceed.

        With more rows in a chunk, every step takes longer; with fewer, too many steps take a second chunk.
        """
        share = self.units / self.unit.expected_units if self.unit.grouped else 1.0 / self.ranks.size
        mean = self.sampler.batch_size * share
        return max(1, min(self.capacity, math.ceil(mean + USUAL_DEVIATIONS * math.sqrt(mean))))

    def _digest(self, rows: np.ndarray, ids: np.ndarray | None) -> str:
        if self.ranks.size == 1:
            return ""
        return hashlib.sha256(rows.tobytes() + (b"" if ids is None else ids.tobytes())).hexdigest()
