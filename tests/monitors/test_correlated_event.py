"""Rounds of correlated noise: each costs as much as its most expensive step, for every accountant."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitors import (
    CorrelatedEvent,
    DisjointEvent,
    GaussianEvent,
    Ledger,
    PLDAccountant,
    PoissonSampledEvent,
    RDPAccountant,
    ZCDPAccountant,
    event_from_dict,
    max_steps,
    relation_of,
)
from monitors.errors import UnsupportedEventError
from monitors.relation import ADD_OR_REMOVE, ZERO_OUT
from monitors.spent import describe_sampling
from monitors.terms import gather
from monitors.tuning import best_of, training_event

ACCOUNTANTS = [RDPAccountant(), PLDAccountant(), ZCDPAccountant()]


def rounds(count, steps, bands=4, rate=0.1, sigma=1.5):
    ledger = Ledger()
    inner = GaussianEvent(sigma) if rate is None else PoissonSampledEvent(rate, GaussianEvent(sigma))
    for number in range(count):
        ledger.record(CorrelatedEvent(number, inner, bands), steps)
    return ledger


@pytest.mark.parametrize(
    ("accountant", "rate"), [pair for pair in product(ACCOUNTANTS, [0.1, 1.0, None]) if pair != (ACCOUNTANTS[2], 0.1)]
)
def test_a_round_costs_what_one_step_does_whatever_the_number_of_its_steps(accountant, rate):
    inner = GaussianEvent(1.5) if rate is None else PoissonSampledEvent(rate, GaussianEvent(1.5))
    independent = accountant.epsilon(Ledger().record(inner, 7), 1e-5)
    for steps in (1, 4):
        assert accountant.epsilon(rounds(7, steps, rate=rate), 1e-5) == pytest.approx(independent, rel=1e-9)


@pytest.mark.parametrize("accountant", ACCOUNTANTS[:2], ids=lambda accountant: accountant.name)
@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([1.0, 2.0]), st.integers(1, 3)), min_size=1, max_size=8))
def test_of_different_steps_of_a_round_the_most_expensive_counts(accountant, steps):
    ledger, worst = Ledger(), {}
    tracker = accountant.tracker()
    for number, sigma, count in steps:
        event = CorrelatedEvent(number, PoissonSampledEvent(0.1, GaussianEvent(sigma)), 4)
        ledger.record(event, count)
        tracker.add(event, count)
        worst[number] = min(worst.get(number, sigma), sigma)
    expected = Ledger()
    for sigma in worst.values():
        expected.record(PoissonSampledEvent(0.1, GaussianEvent(sigma)))
    assert accountant.epsilon(ledger, 1e-5) == pytest.approx(accountant.epsilon(expected, 1e-5), rel=1e-9)
    assert tracker.epsilon(1e-5) >= accountant.epsilon(ledger, 1e-5) * (1 - 1e-9)
    assert tracker.epsilon(1e-5) <= accountant.epsilon(ledger, 1e-5) * 1.03 + 1e-6


def test_rounds_of_samples_hold_for_adding_an_example_and_passes_for_zeroing_one():
    sampled, passes = rounds(3, 4), rounds(3, 4, rate=None)
    assert relation_of(sampled) == ADD_OR_REMOVE
    assert relation_of(rounds(3, 4, rate=1.0)) == ADD_OR_REMOVE
    assert relation_of(passes) == ZERO_OUT
    assert relation_of(sampled.merge(passes)) == ZERO_OUT
    assert relation_of([*sampled, (PoissonSampledEvent(0.1, GaussianEvent(1.0)), 3)]) == ADD_OR_REMOVE


def test_merged_and_lost_rounds_are_charged_separately_and_keep_their_type():
    once = rounds(3, 4)
    both = once.merge(once)
    assert {event.partition for event, _ in both} == set(range(6))
    assert {type(event) for event, _ in both} == {CorrelatedEvent}
    assert both.beyond(once).rows[0][0].bands == 4
    assert both.beyond(once).total == once.total
    assert both.covers(once)
    assert not once.covers(both)


def test_the_event_is_written_and_read_and_refuses_one_band():
    event = CorrelatedEvent(3, PoissonSampledEvent(0.1, GaussianEvent(1.5)), 8)
    assert event_from_dict(event.to_dict()) == event
    assert event.in_partition(5) == CorrelatedEvent(5, event.event, 8)
    assert DisjointEvent(1, GaussianEvent(1.0)).in_partition(2) == DisjointEvent(2, GaussianEvent(1.0))
    for bands in (1, 0, -3, 2.5, "2"):
        with pytest.raises(ValueError, match="bands"):
            CorrelatedEvent(0, GaussianEvent(1.0), bands)


def test_rounds_are_few_terms_however_many():
    terms = gather(rounds(5000, 4))
    assert terms.counts.tolist() == [5000]
    assert not terms.partitions
    assert np.array_equal(terms.rates, [0.1])


def test_a_search_repeats_rounds_and_the_sampling_is_described():
    accountant = RDPAccountant()
    one = training_event(rounds(5, 4))
    assert accountant.epsilon(Ledger().record(one), 1e-5) == pytest.approx(accountant.epsilon(rounds(5, 4), 1e-5))
    assert accountant.epsilon(best_of(rounds(5, 4), 3), 1e-5) == pytest.approx(accountant.epsilon(rounds(15, 4), 1e-5))
    assert describe_sampling(rounds(5, 4)) == "cyclic Poisson, rate 0.1 of a group, noise correlated over 4 steps"
    assert describe_sampling(rounds(5, 4, rate=None)) == "fixed order, no amplification, noise correlated over 4 steps"


@pytest.mark.parametrize("kind", [DisjointEvent, lambda partition, event: CorrelatedEvent(partition, event, 4)])
def test_the_event_of_a_run_is_charged_beside_other_partitions_and_as_often_as_it_is_recorded(kind):
    run = Ledger().record(kind(0, GaussianEvent(2.0)), 5).record(kind(1, GaussianEvent(2.0)), 5)
    accountant, event = ZCDPAccountant(), training_event(run)
    assert accountant.rho(Ledger().record(event)) == pytest.approx(accountant.rho(run))
    assert accountant.rho(Ledger().record(event, 3)) == pytest.approx(3 * accountant.rho(run))
    assert accountant.rho(run.copy().record(event)) == pytest.approx(2 * accountant.rho(run))
    assert relation_of(Ledger().record(event)) == ZERO_OUT


def test_a_partition_of_different_sampled_events_cannot_be_repeated():
    ledger = Ledger().record(CorrelatedEvent(0, PoissonSampledEvent(0.1, GaussianEvent(1.0)), 2))
    ledger.record(CorrelatedEvent(0, PoissonSampledEvent(0.2, GaussianEvent(1.0)), 2))
    with pytest.raises(UnsupportedEventError, match="different events"):
        training_event(ledger)


def test_the_most_rounds_within_a_limit_are_found():
    accountant, limit = RDPAccountant(), 3.0
    most = max_steps(limit, 1e-5, lambda count: rounds(count, 4), accountant)
    assert accountant.epsilon(rounds(most, 4), 1e-5) <= limit < accountant.epsilon(rounds(most + 1, 4), 1e-5)
