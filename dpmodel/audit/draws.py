"""The sampler meter: the rows that were drawn, against the sampling that the events of the ledger state."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from dpmodel.audit.lines import Line
from dpmodel.audit.training import Observed
from monitors.events import CorrelatedEvent, DisjointEvent, PoissonSampledEvent, PrivacyEvent

Rows = NDArray[np.int64]


@dataclass
class Trials:
    """Independent draws of rows: one per step, or one per round of steps with a common partition number.

    Args:
        rate: Probability of each row in each trial.
        rows: Rows of each trial.
    """

    rate: float
    rows: list[Rows] = field(default_factory=list)


def draw_lines(observed: Observed) -> Iterator[Line]:
    """Mean and variance of the batch sizes, draws per row, and rows that were drawn again too early."""
    events = [event for part in observed.parts for event in part.events]
    total = observed.plan.rows
    trials = poisson_trials(events, observed.drawn)
    if trials is not None and 0 < trials.rate < 1:
        sizes = np.array([len(rows) for rows in trials.rows])
        counts = np.bincount(np.concatenate(trials.rows), minlength=total)
        yield _mean_line(sizes, total, trials.rate)
        yield _spread_line("variance of the batch sizes", sizes, total, trials.rate)
        yield _spread_line("variance of the draws per row", counts, len(sizes), trials.rate)
    elif any(isinstance(event, DisjointEvent) for event in events):
        sizes = np.array([len(rows) for rows in observed.drawn])
        off = int((sizes != observed.plan.batch_size).sum())
        mean, note = float(sizes.mean()), f"{off} steps of a different size"
        yield Line("sampler", "batch size", mean, float(observed.plan.batch_size), "=", 0.0 if off else 1.0, note)
    early = drawn_too_early(events, observed.drawn)
    yield Line("sampler", "rows drawn again too early", float(early), 0.0, "=", 0.0 if early else 1.0)


def poisson_trials(events: list[PrivacyEvent], drawn: list[Rows]) -> Trials | None:
    """The independent trials of Poisson sampling; None if the ledger states none.

    A row is in one of the groups of cyclic sampling, so a whole round of steps is one trial.
    """
    plain = [event for event in events if isinstance(event, PoissonSampledEvent)]
    if plain and len(plain) == len(events):
        return Trials(plain[0].sampling_rate, list(drawn))
    rounds: dict[int, list[Rows]] = defaultdict(list)
    rate, bands = 0.0, 0
    for event, rows in zip(events, drawn, strict=True):
        if not isinstance(event, CorrelatedEvent) or not isinstance(event.event, PoissonSampledEvent):
            return None
        rate, bands = event.event.sampling_rate, event.bands
        rounds[event.partition].append(rows)
    return Trials(rate, [np.concatenate(parts) for parts in rounds.values() if len(parts) == bands])


def drawn_too_early(events: list[PrivacyEvent], drawn: list[Rows]) -> int:
    """Rows drawn twice in a step, in a partition, or within the bands of correlated noise."""
    early = 0
    partitions: dict[int, list[Rows]] = defaultdict(list)
    for step, (event, rows) in enumerate(zip(events, drawn, strict=True)):
        early += len(rows) - len(np.unique(rows))
        if isinstance(event, CorrelatedEvent) and event.bands > 1:
            recent = drawn[max(0, step - event.bands + 1) : step]
            early += int(np.isin(rows, np.concatenate(recent)).sum()) if recent else 0
        elif isinstance(event, DisjointEvent):
            partitions[event.partition].append(rows)
    for parts in partitions.values():
        rows = np.concatenate(parts)
        early += len(rows) - len(np.unique(rows))
    return early


def _mean_line(sizes: Rows, total: int, rate: float) -> Line:
    curve = stats.binom(total * len(sizes), rate)
    drawn = int(sizes.sum())
    p_value = 2 * min(float(curve.cdf(drawn)), float(curve.sf(drawn - 1)))
    mean = float(sizes.mean())
    return Line("sampler", "mean batch size", mean, total * rate, "=", min(1.0, p_value), f"{len(sizes)} draws")


def _spread_line(name: str, counts: Rows, trials: int, rate: float) -> Line:
    """The variance of binomial counts, by a chi-square curve with their kurtosis."""
    stated = trials * rate * (1 - rate)
    square = float(np.square(counts - trials * rate).sum()) / stated
    # the variance of a squared standardised count is 2 plus its excess kurtosis
    spread = 2.0 + (1 - 6 * rate * (1 - rate)) / stated
    degrees = 2.0 * len(counts) / spread
    curve = stats.chi2(degrees, scale=len(counts) / degrees)
    p_value = 2 * min(float(curve.cdf(square)), float(curve.sf(square)))
    return Line(
        "sampler", name, square / len(counts) * stated, stated, "=", min(1.0, p_value), f"{len(counts):,} counts"
    )
