"""Hyper-parameter search as a release: the event of a whole run, repeated a fixed or random number of times."""

from __future__ import annotations

import math

from monitors.errors import UnsupportedEventError
from monitors.events import (
    ComposedEvent,
    DisjointEvent,
    GaussianEvent,
    PoissonSampledEvent,
    PrivacyEvent,
    RandomStoppingEvent,
    RepeatedEvent,
)
from monitors.ledger import Ledger
from monitors.relation import ADD_OR_REMOVE, relation_of
from monitors.terms import gather


def training_event(ledger: Ledger) -> PrivacyEvent:
    """All releases of a ledger as one event; a partition becomes one Gaussian with the cost of its worst part.

    Raises:
        UnsupportedEventError: A partition contains different events that are not all unsampled Gaussians.
        ValueError: The ledger is empty.

    Example:
        >>> training_event(Ledger().record(GaussianEvent(2.0), 3))
        ComposedEvent(events=(RepeatedEvent(event=GaussianEvent(noise_multiplier=2.0), count=3),))
    """
    parts: list[PrivacyEvent] = [
        RepeatedEvent(event, count) for event, count in ledger if not isinstance(event, DisjointEvent)
    ]
    shuffled = gather((event, count) for event, count in ledger if isinstance(event, DisjointEvent))
    if shuffled.partitions:
        raise UnsupportedEventError(
            f"a partition contains different events that are not all unsampled Gaussians: {shuffled.partitions[0]!r}. "
            "Repeat runs whose shuffled steps have Gaussian noise, or use Poisson sampling"
        )
    if shuffled.mu_squared:
        parts.append(GaussianEvent(1 / math.sqrt(shuffled.mu_squared)))
    for rate, multiplier, times in zip(shuffled.rates, shuffled.multipliers, shuffled.counts, strict=True):
        sampled = PoissonSampledEvent(float(rate), GaussianEvent(float(multiplier)))
        parts.append(RepeatedEvent(sampled, int(times)))
    if not parts:
        raise ValueError("the ledger is empty: record a run before repeating it")
    run = ComposedEvent(tuple(parts))
    # The partition keeps the neighbour relation. It must not be the outer event: a ledger with a partition of the same
    # number would charge only one of them.
    return run if relation_of(ledger) == ADD_OR_REMOVE else RepeatedEvent(DisjointEvent(0, run), 1)


def best_of(ledger: Ledger, runs: int) -> Ledger:
    """Ledger for publishing the best of ``runs`` runs, each like ``ledger``; all runs are charged.

    Example:
        >>> from monitors import ZCDPAccountant
        >>> ZCDPAccountant().rho(best_of(Ledger().record(GaussianEvent(2.0), 3), runs=5))
        1.875
    """
    result = Ledger(ledger.notes).record(RepeatedEvent(training_event(ledger), runs))
    result.add_note(f"tuning: best of {runs} runs, all of them charged")
    return result


def best_of_random(ledger: Ledger, expected_runs: float, distribution: str = "geometric") -> Ledger:
    """Ledger for publishing the best of a random number of runs, each like ``ledger``; needs the ``rdp`` accountant.

    Args:
        ledger: Ledger of one run.
        expected_runs: Mean number of runs.
        distribution: ``"geometric"``, ``"logarithmic"`` or ``"poisson"``; the number of runs must be drawn from it and
            kept secret.

    Example:
        >>> from monitors import RDPAccountant
        >>> one, accountant = Ledger().record(GaussianEvent(10.0)), RDPAccountant()
        >>> bool(accountant.epsilon(best_of_random(one, 20.0), 1e-5) < accountant.epsilon(best_of(one, 20), 1e-5))
        True
    """
    result = Ledger(ledger.notes).record(RandomStoppingEvent(training_event(ledger), expected_runs, distribution))
    result.add_note(f"tuning: best of a {distribution} number of runs, {expected_runs:g} expected, charged")
    return result
