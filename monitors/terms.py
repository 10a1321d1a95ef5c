"""A ledger as sums of Gaussian releases: the normal form from which every accountant starts.

Releases of one drawn sample are composed INSIDE the sampling, where Gaussians of multipliers ``s1, s2`` equal one
Gaussian of ``(s1^-2 + s2^-2)^-1/2``. All unsampled Gaussians together equal one Gaussian.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from functools import singledispatch
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from monitors.errors import UnsupportedEventError
from monitors.events import (
    ComposedEvent,
    DisjointEvent,
    GaussianEvent,
    NonPrivateEvent,
    PoissonSampledEvent,
    PrivacyEvent,
    RepeatedEvent,
    holds_partition,
    parts_of,
)
from monitors.gaussian import combined_multiplier

Rows = Iterable[tuple[PrivacyEvent, int]]
Floats = NDArray[np.floating]


class SampledGaussian(NamedTuple):
    """``times`` Gaussian releases of ``multiplier``, each from a Poisson sample of ``rate`` (1: all the data)."""

    rate: float
    multiplier: float
    times: int = 1


@singledispatch
def gaussian_terms(event: PrivacyEvent) -> list[SampledGaussian] | None:
    """The sampled Gaussians that equal or dominate ``event``; None if there are none.

    Every accountant understands an event type with a rule registered here.

    Example:
        A custom event, known to be dominated by a Gaussian of half its scale:

        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class MyEvent(PrivacyEvent):
        ...     scale: float
        >>> @gaussian_terms.register(MyEvent)
        ... def _(event):
        ...     return [SampledGaussian(1.0, event.scale / 2)]
        >>> from monitors.ledger import Ledger
        >>> gather(Ledger().record(MyEvent(4.0))).mu_squared
        0.25
    """
    del event
    return None


@gaussian_terms.register
def _(event: GaussianEvent) -> list[SampledGaussian] | None:
    return [SampledGaussian(1.0, event.noise_multiplier)]


@gaussian_terms.register
def _(event: ComposedEvent) -> list[SampledGaussian] | None:
    parts = [gaussian_terms(part) for part in event.events]
    if any(part is None for part in parts):
        return None
    return [term for part in parts if part is not None for term in part]


@gaussian_terms.register
def _(event: PoissonSampledEvent) -> list[SampledGaussian] | None:
    inner = gaussian_terms(event.event)
    if inner is None or event.sampling_rate == 1:
        return inner
    if holds_partition(event.event):
        raise UnsupportedEventError(
            f"a DisjointEvent inside a sampled event has no privacy statement, got {event!r}. "
            "Record Poisson-sampled or shuffled batches, not both at once."
        )
    if all(term.rate == 1 for term in inner):
        multipliers = [term.multiplier / term.times**0.5 for term in inner]
        return [SampledGaussian(event.sampling_rate, combined_multiplier(multipliers))]
    if len(inner) == 1 and inner[0].times == 1:
        # a sample of a sample: each example must be drawn twice, independently
        return [SampledGaussian(event.sampling_rate * inner[0].rate, inner[0].multiplier)]
    return None


@gaussian_terms.register
def _(event: DisjointEvent) -> list[SampledGaussian] | None:
    # outside of its ledger, the partition is unknown; charging the event separately is always valid
    return gaussian_terms(event.event)


@gaussian_terms.register
def _(event: RepeatedEvent) -> list[SampledGaussian] | None:
    inner = gaussian_terms(event.event)
    if inner is None:
        return None
    return [SampledGaussian(term.rate, term.multiplier, term.times * event.count) for term in inner]


@dataclass(frozen=True)
class Terms:
    """The releases of a ledger, sorted by kind.

    Args:
        rates: Sampling rates of the sampled Gaussians, below 1, shape (n,).
        multipliers: Noise multipliers of the sampled Gaussians, shape (n,).
        counts: Number of releases of each, shape (n,).
        mu_squared: ``sum 1 / sigma^2`` of the unsampled Gaussian releases; of each partition, only the largest counts.
        others: Non-Gaussian events with counts; an accountant needs a specific rule for each.
        partitions: The distinct events of each partition of several that are not all unsampled Gaussians.
        unprotected: Whether something was released without any privacy.
    """

    rates: Floats
    multipliers: Floats
    counts: Floats
    mu_squared: float = 0.0
    others: tuple[tuple[PrivacyEvent, int], ...] = ()
    partitions: tuple[tuple[PrivacyEvent, ...], ...] = ()
    unprotected: bool = False

    @property
    def only_unsampled(self) -> bool:
        """Whether one unsampled Gaussian of ``mu_squared`` describes the whole ledger."""
        return self.rates.size == 0 and not self.others and not self.partitions


def gather(rows: Rows) -> Terms:
    """Sort the releases of a ledger (or of any ``(event, count)`` pairs) by kind.

    Example:
        >>> from monitors.ledger import Ledger
        >>> step = PoissonSampledEvent(0.01, ComposedEvent((GaussianEvent(1.0), GaussianEvent(1.0))))
        >>> gather(Ledger().record(step, 100)).multipliers.round(4)
        array([0.7071])
    """
    sampled = _Columns()
    others: list[tuple[PrivacyEvent, int]] = []
    partitions: dict[int, dict[PrivacyEvent, None]] = {}
    mu_squared, unprotected = 0.0, False
    for event, count in rows:
        if type(event) is PoissonSampledEvent and type(event.event) is GaussianEvent and event.sampling_rate < 1:
            sampled.add(event.sampling_rate, event.event.noise_multiplier, count)
            continue
        unprotected = unprotected or _is_unprotected(event)
        if isinstance(event, DisjointEvent):
            partitions.setdefault(event.partition, {})[event.event] = None
            continue
        terms = gaussian_terms(event)
        if terms is None:
            others.append((event, count))
            continue
        mu_squared += sampled.add_terms(terms, count)
    hard = []
    for events in partitions.values():
        only = gaussian_terms(next(iter(events))) if len(events) == 1 else None
        if only is not None:  # it costs as much as its only event
            mu_squared += sampled.add_terms(only, 1)
            continue
        costs = [_unsampled_mu_squared(event) for event in events]
        known = [cost for cost in costs if cost is not None]
        if len(known) == len(costs):
            mu_squared += max(known)
        else:
            hard.append(tuple(events))
    rates, multipliers, counts = sampled.distinct()
    return Terms(rates, multipliers, counts, mu_squared, tuple(others), tuple(hard), unprotected)


class _Columns:
    """Rates, multipliers and counts in the order of recording: 24 bytes a row, because a ledger may have millions."""

    def __init__(self) -> None:
        self._rates, self._multipliers, self._counts = array("d"), array("d"), array("d")

    def add(self, rate: float, multiplier: float, count: int) -> None:
        self._rates.append(rate)
        self._multipliers.append(multiplier)
        self._counts.append(count)

    def add_terms(self, terms: list[SampledGaussian], count: int) -> float:
        """Append the sampled ones of ``count`` times ``terms``; return ``sum 1 / sigma^2`` of the others."""
        mu_squared = 0.0
        for rate, multiplier, times in terms:
            if rate == 1:
                mu_squared += count * times * _inverse_square(multiplier)
            else:
                self.add(rate, multiplier, count * times)
        return mu_squared

    def distinct(self) -> tuple[Floats, Floats, Floats]:
        """The distinct pairs of rate and multiplier, in the order of their first appearance, and their counts."""
        columns = self._rates, self._multipliers, self._counts
        rates, multipliers, counts = (np.array(column, dtype=np.float64) for column in columns)
        order = np.lexsort((multipliers, rates))
        begins = np.ones(order.size, dtype=bool)
        begins[1:] = (np.diff(rates[order]) != 0) | (np.diff(multipliers[order]) != 0)
        first = order[begins]  # the sort is stable
        totals = np.bincount(np.cumsum(begins) - 1, counts[order], first.size)
        back = np.argsort(first, kind="stable")
        return rates[first[back]], multipliers[first[back]], totals[back].astype(np.float64)


def _unsampled_mu_squared(event: PrivacyEvent) -> float | None:
    terms = gaussian_terms(event)
    if terms is None or any(term.rate != 1 for term in terms):
        return None
    return sum(term.times * _inverse_square(term.multiplier) for term in terms)


def _inverse_square(multiplier: float) -> float:
    return (1.0 / multiplier) ** 2 if multiplier > 1e-150 else float("inf")


def _is_unprotected(event: PrivacyEvent) -> bool:
    return isinstance(event, NonPrivateEvent) or any(_is_unprotected(part) for part in parts_of(event))


def merge_similar(terms: Terms, groups: int) -> Terms:
    """Merge sampled Gaussians of similar rate and multiplier: close to ``terms``, but not a bound.

    Used to locate an optimum; the figure itself is computed from the original terms.
    """
    keys = np.stack([_bin(np.log(terms.multipliers), groups), _bin(np.log(terms.rates), groups)], axis=1)
    _, index = np.unique(keys, axis=0, return_inverse=True)
    index = index.ravel()
    counts = np.bincount(index, terms.counts).astype(np.float64)
    multipliers = np.exp(np.bincount(index, terms.counts * np.log(terms.multipliers)) / counts)
    rates = np.exp(np.bincount(index, terms.counts * np.log(terms.rates)) / counts)
    return Terms(rates, multipliers, counts, terms.mu_squared, terms.others, terms.partitions, terms.unprotected)


def _bin(values: Floats, groups: int) -> NDArray[np.int64]:
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return np.zeros(values.shape, dtype=np.int64)
    bins: NDArray[np.int64] = np.minimum((values - low) / (high - low) * groups, groups - 1).astype(np.int64)
    return bins
