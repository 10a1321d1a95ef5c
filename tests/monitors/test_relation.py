import pytest

from monitors import RDPAccountant, best_of, best_of_random, privacy_spent
from monitors.errors import UnsupportedEventError
from monitors.events import (
    ComposedEvent,
    CorrelatedEvent,
    DisjointEvent,
    GaussianEvent,
    NonPrivateEvent,
    PoissonSampledEvent,
    RandomStoppingEvent,
    RepeatedEvent,
)
from monitors.ledger import Ledger
from monitors.relation import ADD_OR_REMOVE, ZERO_OUT, relation_of

SUM = GaussianEvent(1.0)
SAMPLED, SHUFFLED = PoissonSampledEvent(0.1, SUM), DisjointEvent(0, SUM)
SUM_AND_COUNT = PoissonSampledEvent(0.1, ComposedEvent((SUM, GaussianEvent(20.0))))


@pytest.mark.parametrize(
    ("events", "relation"),
    [
        ([], ADD_OR_REMOVE),
        ([SAMPLED, SUM_AND_COUNT, SUM], ADD_OR_REMOVE),
        ([SHUFFLED], ZERO_OUT),
        ([RepeatedEvent(SHUFFLED, 3)], ZERO_OUT),
        ([SAMPLED, SHUFFLED, NonPrivateEvent(), DisjointEvent(1, ComposedEvent((SUM, SUM)))], ZERO_OUT),
        ([PoissonSampledEvent(0.1, NonPrivateEvent()), SHUFFLED], ZERO_OUT),
        ([CorrelatedEvent(0, SAMPLED, 2), CorrelatedEvent(1, SUM_AND_COUNT, 2), SUM_AND_COUNT], ADD_OR_REMOVE),
        ([CorrelatedEvent(0, SAMPLED, 2), DisjointEvent(1, SUM)], ZERO_OUT),
        ([CorrelatedEvent(0, SUM, 2), SAMPLED], ZERO_OUT),
        ([RepeatedEvent(CorrelatedEvent(0, SUM, 2), 3)], ZERO_OUT),
    ],
    ids=str,
)
def test_the_relation_is_derived_from_the_events(events, relation):
    assert relation_of([(event, 1) for event in events]) == relation


@pytest.mark.parametrize(
    "other",
    [
        CorrelatedEvent(1, SUM_AND_COUNT, 2),
        SUM_AND_COUNT,
        SUM_AND_COUNT.event,
        RepeatedEvent(SUM_AND_COUNT, 2),
        RandomStoppingEvent(SUM_AND_COUNT, 3),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_events_without_a_common_relation_have_no_epsilon(other, first):
    ledger = Ledger()
    for event in [other, SHUFFLED] if first else [SHUFFLED, other]:
        ledger.record(event)
    with pytest.raises(UnsupportedEventError, match="no single epsilon covers both"):
        privacy_spent(ledger, 1e-5)


def test_a_mixed_ledger_states_the_relation_that_covers_all_its_events():
    ledger = Ledger().record(SHUFFLED).merge(Ledger().record(SAMPLED))
    assert privacy_spent(ledger, 1e-5, "rdp", {"relation": ADD_OR_REMOVE}).relation == ZERO_OUT


@pytest.mark.parametrize("charged", [best_of, best_of_random])
def test_a_search_keeps_the_relation_of_its_runs(charged):
    accountant = RDPAccountant()
    for event in (SHUFFLED, CorrelatedEvent(0, SUM, 2)):
        run, unsampled = Ledger().record(event, 4), Ledger().record(SUM)
        assert relation_of(charged(run, 5)) == ZERO_OUT
        assert accountant.epsilon(charged(run, 5), 1e-5) == accountant.epsilon(charged(unsampled, 5), 1e-5)
    sampled = Ledger().record(CorrelatedEvent(0, SAMPLED, 2), 2).record(CorrelatedEvent(1, SAMPLED, 2), 2)
    assert relation_of(charged(sampled, 5)) == ADD_OR_REMOVE
    with pytest.raises(UnsupportedEventError, match="no single epsilon covers both"):
        charged(Ledger().record(SHUFFLED).record(SUM_AND_COUNT), 5)
