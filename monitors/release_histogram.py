"""Releases counted in bins of similar multipliers, so that a ledger of any length has a bound of fixed cost."""

from __future__ import annotations

import math

from monitors.events import DisjointEvent, GaussianEvent, PoissonSampledEvent, PrivacyEvent, holds_partition
from monitors.gaussian import combined_multiplier
from monitors.ledger import Ledger
from monitors.terms import Rows, gaussian_terms

_WIDTH = 1e-3  # of a bin, relative
_LARGEST = 1e100  # beyond this multiplier, and below its inverse, a release is not binned


class ReleaseHistogram:
    """Sampled Gaussian releases, those of similar multiplier and rate counted together as the most expensive of them.

    Guarantees: the rows cost at least as much as the releases; multipliers are at most 0.1 % lower. They depend on what
    was added, not on when it was read. A decay over two decades has at most 5,000 rows, whatever the number of steps.
    Other events are kept as they are.

    Example:
        >>> from monitors.schedules import exp_decay
        >>> histogram, schedule = ReleaseHistogram(), exp_decay(4.0, 1e-4)
        >>> for step in range(7_000):
        ...     histogram.add(PoissonSampledEvent(0.01, GaussianEvent(schedule(step))))
        >>> rows = histogram.rows
        >>> len(rows), sum(count for _, count in rows)
        (701, 7000)
    """

    def __init__(self) -> None:
        self._bins: dict[tuple[int | None, int, int], tuple[float, float, int]] = {}  # rate, multiplier, count
        self._others = Ledger()

    def add(self, event: PrivacyEvent, count: int = 1) -> None:
        """Count ``count`` more releases of ``event``."""
        partition, inner = (event.partition, event.event) if isinstance(event, DisjointEvent) else (None, event)
        term = _one_gaussian(inner)
        if term is None:
            self._others.record(event, count)
            return
        key = (partition, _bin(term[0]), _bin(term[1]))
        rate, multiplier, before = self._bins.get(key, (*term, 0))
        # of a partition, only the most expensive release counts
        after = before + count if partition is None else 1
        self._bins[key] = max(rate, term[0]), min(multiplier, term[1]), after

    @property
    def rows(self) -> list[tuple[PrivacyEvent, int]]:
        """Events and counts, which any accountant reads."""
        found: list[tuple[PrivacyEvent, int]] = []
        for (partition, _, _), (rate, multiplier, count) in self._bins.items():
            event: PrivacyEvent = GaussianEvent(multiplier)
            event = event if rate == 1 else PoissonSampledEvent(rate, event)
            found.append((event if partition is None else DisjointEvent(partition, event), count))
        return found + list(self._others)

    def with_rows(self, further: Rows) -> list[tuple[PrivacyEvent, int]]:
        """``rows`` after ``further`` releases; nothing is added."""
        after = ReleaseHistogram()
        after._bins = dict(self._bins)
        after._others = self._others.copy()
        for event, count in further:
            after.add(event, count)
        return after.rows


def _one_gaussian(event: PrivacyEvent) -> tuple[float, float] | None:
    """Rate and multiplier of one sampled Gaussian that equals or dominates ``event``; None if there is none."""
    terms = None if holds_partition(event) else gaussian_terms(event)
    if not terms or any(not 1 / _LARGEST < term.multiplier < _LARGEST for term in terms):
        return None
    if len(terms) == 1 and terms[0].times == 1:
        return terms[0].rate, terms[0].multiplier
    if any(term.rate != 1 for term in terms):
        return None
    return 1.0, combined_multiplier([term.multiplier / term.times**0.5 for term in terms])


def _bin(value: float) -> int:
    return math.floor(math.log(value) / _WIDTH)
