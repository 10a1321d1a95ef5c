"""The neighbour relation: which data sets a ledger's guarantee compares, derived from its events."""

from __future__ import annotations

from monitors.errors import UnsupportedEventError
from monitors.events import (
    ComposedEvent,
    CorrelatedEvent,
    DisjointEvent,
    GaussianEvent,
    NonPrivateEvent,
    PoissonSampledEvent,
    PrivacyEvent,
    parts_of,
)
from monitors.terms import Rows

ADD_OR_REMOVE = "add or remove one example"
ZERO_OUT = "zero out one example"


def relation_of(rows: Rows) -> str:
    """The relation under which every event of a ledger holds.

    One ledger is one claim, so all of its events must hold for the same neighbours. A partition (shuffled batches)
    holds for zeroing out what one example contributes. A Poisson-sampled Gaussian sum also holds for this relation: the
    example moves the sum by its clipped gradient, just as when it is added or removed. Several releases of one sample,
    such as a sum and the count of adaptive clipping, hold for adding or removing one example only.

    Args:
        rows: A ledger, or any ``(event, count)`` pairs.

    Raises:
        UnsupportedEventError: No relation covers all events.

    Example:
        >>> relation_of([(PoissonSampledEvent(0.1, GaussianEvent(1.0)), 5)])
        'add or remove one example'
        >>> relation_of([(DisjointEvent(0, GaussianEvent(1.0)), 5), (PoissonSampledEvent(0.1, GaussianEvent(1.0)), 5)])
        'zero out one example'
    """
    events = [event for event, _ in rows]
    if not any(map(_needs_zero_out, events)):
        return ADD_OR_REMOVE
    for event in events:
        if not _holds_for_zero_out(event):
            raise UnsupportedEventError(
                f"shuffled batches hold for the neighbour relation {ZERO_OUT!r}, but {event!r} holds only for "
                f"{ADD_OR_REMOVE!r}: no single epsilon covers both. Use two ledgers and state both epsilons, or use "
                "the same sampling for all runs on this data"
            )
    return ZERO_OUT


def _needs_zero_out(event: PrivacyEvent) -> bool:
    """Whether ``event`` does not hold for adding or removing an example."""
    if isinstance(event, CorrelatedEvent) and isinstance(event.event, PoissonSampledEvent):
        return False  # the group of an example is drawn independently of the others
    return isinstance(event, DisjointEvent) or any(map(_needs_zero_out, parts_of(event)))


def _holds_for_zero_out(event: PrivacyEvent) -> bool:
    if isinstance(event, CorrelatedEvent) and isinstance(event.event, PoissonSampledEvent):
        return _holds_for_zero_out(event.event)
    if isinstance(event, DisjointEvent):
        return True
    if isinstance(event, PoissonSampledEvent):
        return isinstance(event.event, GaussianEvent | NonPrivateEvent)
    # At rate 1, a sum and a count are composed without a sampled event around them.
    return not isinstance(event, ComposedEvent) and all(map(_holds_for_zero_out, parts_of(event)))


def stated_relation(rows: Rows) -> dict[str, str]:
    """``{"relation": ...}`` if the events of a ledger allow only one relation, else an empty dictionary.

    Raises:
        UnsupportedEventError: See ``relation_of``.
    """
    found = relation_of(rows)
    return {} if found == ADD_OR_REMOVE else {"relation": found}
