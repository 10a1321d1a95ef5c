"""Trackers of a growing ledger give the accountant's figures."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from monitors import (
    DisjointEvent,
    GaussianEvent,
    Ledger,
    NonPrivateEvent,
    PLDAccountant,
    PoissonSampledEvent,
    PrivacyWarning,
    RDPAccountant,
    UnsupportedEventError,
    ZCDPAccountant,
)
from monitors.schedules import decayed

events = st.one_of(
    st.builds(PoissonSampledEvent, st.floats(1e-3, 0.3), st.builds(GaussianEvent, st.floats(0.3, 30))),
    st.builds(GaussianEvent, st.floats(0.5, 30)),
    st.builds(DisjointEvent, st.integers(0, 2), st.builds(GaussianEvent, st.floats(0.5, 30))),
)


@given(st.lists(st.tuples(events, st.integers(1, 50)), min_size=1, max_size=6), st.floats(1e-9, 1e-2))
@settings(max_examples=30, deadline=None)
@example([(PoissonSampledEvent(0.001, GaussianEvent(1.0)), 1)], 5.96e-8)
def test_the_tracker_is_close_above_the_accountant_and_equal_when_tightened(rows, delta):
    accountant, ledger = RDPAccountant(), Ledger()
    tracker = accountant.tracker()
    for event, count in rows:
        ledger.record(event, count)
        foreseen = tracker.epsilon_with(event, delta, count)
        tracker.add(event, count)
        assert tracker.epsilon(delta) == pytest.approx(foreseen, rel=1e-9, abs=1e-12)
    exact = accountant.epsilon(ledger, delta)
    assert exact * (1 - 1e-4) <= tracker.epsilon(delta) <= exact * 1.02 + 1e-9
    tracker.tighten(delta)
    assert exact * (1 - 1e-4) <= tracker.epsilon(delta) <= exact * (1 + 1e-6) + 1e-9


def test_an_unused_tracker_is_as_tight_as_the_accountant_when_tightened():
    accountant, ledger = RDPAccountant(), Ledger().record(PoissonSampledEvent(0.1, GaussianEvent(1.1)), 20)
    tracker = accountant.tracker()
    tracker.add(PoissonSampledEvent(0.1, GaussianEvent(1.1)), 20)
    tracker.tighten(1e-5)
    assert tracker.epsilon(1e-5) == pytest.approx(accountant.epsilon(ledger, 1e-5), rel=1e-9)


def test_preparing_events_changes_only_the_speed():
    sigma = decayed(1.5, "Exp", 1e-3)
    steps = [PoissonSampledEvent(0.01, GaussianEvent(sigma(step))) for step in range(200)]
    prepared, plain = RDPAccountant().tracker(), RDPAccountant().tracker()
    prepared.prepare(steps)
    for step in steps:
        prepared.add(step)
        plain.add(step)
    assert prepared.epsilon(1e-5) == pytest.approx(plain.epsilon(1e-5), rel=1e-9)
    assert prepared.delta(2.0) == pytest.approx(plain.delta(2.0), rel=1e-9)


def test_a_tracker_keeps_the_given_orders():
    tracker = RDPAccountant([4.0, 8.0]).tracker()
    tracker.add(GaussianEvent(3.0), 2)
    with pytest.warns(PrivacyWarning):
        expected = RDPAccountant([4.0, 8.0]).epsilon(Ledger().record(GaussianEvent(3.0), 2), 1e-5)
    assert tracker.epsilon(1e-5) == expected


@pytest.mark.parametrize("accountant", [RDPAccountant(), PLDAccountant()], ids=lambda accountant: accountant.name)
def test_the_tracker_allows_exactly_as_many_steps_as_the_accountant(accountant):
    event = PoissonSampledEvent(0.05, GaussianEvent(1.2))
    limit = accountant.epsilon(Ledger().record(event, 37), 1e-5)
    tracker, done = accountant.tracker(), 0
    tracker.prepare([event] * 60)
    while tracker.stays_within(event, limit * (1 + 1e-9), 1e-5):
        tracker.add(event)
        done += 1
    assert done == 37


def test_the_base_tracker_gives_every_figure():
    tracker = ZCDPAccountant().tracker()
    tracker.add(GaussianEvent(2.0), 3)
    assert tracker.delta_with(GaussianEvent(2.0), 1.0) > tracker.delta(1.0)
    assert tracker.stays_within(GaussianEvent(2.0), 100.0, 1e-5)
    assert not tracker.stays_within(GaussianEvent(0.01), 100.0, 1e-5)


def test_the_zcdp_tracker_gives_the_figures_of_the_accountant():
    accountant = ZCDPAccountant()
    tracker, ledger = accountant.tracker(), Ledger()
    events = [DisjointEvent(0, GaussianEvent(3.0)), DisjointEvent(0, GaussianEvent(2.0)), GaussianEvent(5.0)]
    for event in [*events, DisjointEvent(1, GaussianEvent(2.5)), NonPrivateEvent()]:
        ledger.record(event, 2)
        assert tracker.epsilon_with(event, 1e-5, 2) == pytest.approx(accountant.epsilon(ledger, 1e-5), rel=1e-9)
        assert tracker.delta_with(event, 1.0, 2) == pytest.approx(accountant.delta(ledger, 1.0), rel=1e-9)
        tracker.add(event, 2)
        assert tracker.epsilon(1e-5) == pytest.approx(accountant.epsilon(ledger, 1e-5), rel=1e-9)
        assert tracker.delta(1.0) == pytest.approx(accountant.delta(ledger, 1.0), rel=1e-9)
    with pytest.raises(UnsupportedEventError, match="PoissonSampledEvent"):
        accountant.tracker().stays_within(PoissonSampledEvent(0.1, GaussianEvent(1.0)), 1.0, 1e-5)


def test_an_event_that_was_not_announced_is_evaluated_separately():
    tracker = PLDAccountant().tracker()
    mild, harsh = PoissonSampledEvent(0.01, GaussianEvent(2.0)), PoissonSampledEvent(0.01, GaussianEvent(0.3))
    tracker.prepare([mild] * 50)
    limit = PLDAccountant().epsilon(Ledger().record(mild, 50), 1e-5)
    assert tracker.stays_within(mild, limit, 1e-5)
    assert not tracker.stays_within(harsh, limit, 1e-5)
    tracker.add(harsh)
    assert not tracker.stays_within(mild, limit, 1e-5)


def test_orders_added_later_include_all_earlier_releases():
    tracker = RDPAccountant().tracker()
    for _ in range(3):
        tracker.add(GaussianEvent(0.02))
    exact = RDPAccountant().epsilon(Ledger().record(GaussianEvent(0.02), 3), 1e-5)
    assert tracker.epsilon(1e-5) == pytest.approx(exact, rel=1.2e-3)
    assert np.isfinite(exact)


@pytest.mark.parametrize("accountant", [RDPAccountant(), PLDAccountant(), ZCDPAccountant()], ids=lambda one: one.name)
def test_a_shuffled_epoch_without_noise_has_an_infinite_epsilon(accountant):
    tracker, batch = accountant.tracker(), DisjointEvent(0, NonPrivateEvent())
    for _ in range(3):
        tracker.add(batch)
        assert tracker.epsilon(1e-5) == np.inf
        assert tracker.delta(1.0) == 1.0
        assert not tracker.stays_within(batch, 100.0, 1e-5)
