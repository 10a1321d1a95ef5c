"""Which data sets a ledger's guarantee compares: the neighbour relation, read off the events."""

from __future__ import annotations

from monitors.errors import UnsupportedEventError
from monitors.events import (
    ComposedEvent,
    DisjointEvent,
    GaussianEvent,
    NonPrivateEvent,
    PoissonSampledEvent,
    PrivacyEvent,
    holds_partition,
    parts_of,
)
from monitors.terms import Rows

ADD_OR_REMOVE = "add or remove one example"
ZERO_OUT = "zero out one example"


def relation_of(rows: Rows) -> str:
    """The relation under which every event of a ledger holds.

    One ledger is one claim, so all of its events must hold for the same neighbours. A partition (shuffled batches)
    holds for zeroing one example's gradient out. A Poisson-sampled Gaussian sum holds for that too: an example then
    moves the sum by its clipped gradient, as when it is added or removed. More than one release of a sample, such as
    the count of adaptive clipping, is measured for one example more or less alone.

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
    if not any(map(holds_partition, events)):
        return ADD_OR_REMOVE
    for event in events:
        if not _holds_for_zero_out(event):
            raise UnsupportedEventError(
                f"shuffled batches hold for neighbours of the kind {ZERO_OUT!r}, but {event!r} only for "
                f"{ADD_OR_REMOVE!r}: no one epsilon covers both. State them apart, from two ledgers, or sample all "
                "trainings on these data alike"
            )
    return ZERO_OUT


def _holds_for_zero_out(event: PrivacyEvent) -> bool:
    if isinstance(event, DisjointEvent):
        return True
    if isinstance(event, PoissonSampledEvent):
        return isinstance(event.event, GaussianEvent | NonPrivateEvent)
    # At rate 1 a sum and a count stand together without a sampled event around them.
    return not isinstance(event, ComposedEvent) and all(map(_holds_for_zero_out, parts_of(event)))


def stated_relation(rows: Rows) -> dict[str, str]:
    """``{"relation": ...}`` where the events of a ledger leave but one relation, else nothing.

    Raises:
        UnsupportedEventError: See ``relation_of``.
    """
    found = relation_of(rows)
    return {} if found == ADD_OR_REMOVE else {"relation": found}
