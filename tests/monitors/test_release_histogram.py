"""A histogram of releases costs at least what they cost, hardly more, and depends on nothing else."""

import numpy as np
import pytest

import monitors.accountant as accountants
from monitors import (
    ComposedEvent,
    DisjointEvent,
    GaussianEvent,
    LaplaceEvent,
    Ledger,
    NonPrivateEvent,
    PLDAccountant,
    PoissonSampledEvent,
    RDPAccountant,
    ZCDPAccountant,
)
from monitors.accountant import Tracker
from monitors.release_histogram import ReleaseHistogram
from monitors.schedules import decayed


def histogram_of(events):
    histogram = ReleaseHistogram()
    for event in events:
        histogram.add(event)
    return histogram


def ledger_of(events):
    ledger = Ledger()
    for event in events:
        ledger.record(event)
    return ledger


def decaying(policy="Exp", rate=1e-4, steps=2_000, first=1.5):
    schedule = decayed(first, policy, rate)
    clip = GaussianEvent(20.0)
    return [PoissonSampledEvent(0.01, ComposedEvent((GaussianEvent(schedule(n)), clip))) for n in range(steps)]


def shuffled(steps=2_000, per_epoch=100):
    schedule = decayed(40.0, "Exp", 1e-4)
    return [DisjointEvent(step // per_epoch, GaussianEvent(schedule(step))) for step in range(steps)]


def mixed():
    draw = np.random.default_rng(0)
    sampled = [PoissonSampledEvent(q, GaussianEvent(s)) for q, s in draw.uniform((0.01, 1.0), (0.011, 1.01), (40, 2))]
    return [*sampled, GaussianEvent(30.0), LaplaceEvent(50.0), GaussianEvent(30.0)]


@pytest.mark.sample(8)
@pytest.mark.parametrize("events", [decaying(steps=500), decaying("Time", steps=300), shuffled(), mixed()], ids=len)
@pytest.mark.parametrize("accountant", [RDPAccountant(), PLDAccountant()], ids=lambda found: found.name)
def test_a_histogram_costs_at_least_its_releases_and_hardly_more(events, accountant):
    exact = accountant.epsilon(ledger_of(events), 1e-5)
    bound = accountant.epsilon(histogram_of(events).rows, 1e-5)
    # both are bounds: the second may be lower by the precision to which the first was computed
    assert exact * (1 - accountants_precision(accountant)) <= bound <= exact * 1.005


def accountants_precision(accountant):
    return getattr(accountant, "precision", 1e-9)


def test_a_histogram_of_shuffled_epochs_has_few_rows_and_costs_at_least_as_much_by_zcdp():
    events, accountant = shuffled(), ZCDPAccountant()
    rows = histogram_of(events).rows
    assert len(rows) < 300
    exact = accountant.epsilon(ledger_of(events), 1e-5)
    assert exact <= accountant.epsilon(rows, 1e-5) <= exact * 1.005


def test_a_release_without_privacy_stays_one():
    rows = histogram_of([*decaying(steps=3), NonPrivateEvent()]).rows
    assert RDPAccountant().epsilon(rows, 1e-5) == np.inf


def test_further_releases_are_not_added():
    histogram = histogram_of(mixed())
    before = histogram.rows
    after = histogram.with_rows([(GaussianEvent(3.0), 2), (LaplaceEvent(50.0), 1)])
    assert histogram.rows == before
    assert sum(count for _, count in after) == sum(count for _, count in before) + 3


@pytest.mark.parametrize("accountant", [RDPAccountant(), PLDAccountant()], ids=lambda found: found.name)
def test_the_figure_of_a_tracker_depends_on_the_releases_alone(monkeypatch, accountant):
    monkeypatch.setattr(accountants, "MOST_ROWS", 50)
    events = decaying(steps=60)
    asked, late = Tracker(accountant), Tracker(accountant)
    for number, event in enumerate(events):
        asked.add(event)
        if number % 20 == 0:
            asked.epsilon(1e-5)
            asked.within([(event, 3)], 1.0, 1e-5)
    for event in events:
        late.add(event)
    assert asked.epsilon(1e-5) == late.epsilon(1e-5)


def test_a_long_pld_tracker_states_bounds_and_its_accountants_figure_when_tightened(monkeypatch):
    monkeypatch.setattr(accountants, "MOST_ROWS", 50)
    accountant, events = PLDAccountant(), decaying(steps=100)
    tracker = accountant.tracker()
    for event in events:
        tracker.add(event)
    exact = accountant.epsilon(ledger_of(events), 1e-5)
    bound = tracker.epsilon(1e-5)
    assert exact * (1 - 1e-3) <= bound <= exact * 1.005
    tracker.tighten(1e-5)
    assert tracker.epsilon(1e-5) == exact
    tracker.add(events[-1])
    assert tracker.epsilon(1e-5) >= bound


def test_a_step_that_fits_only_by_the_exact_figure_is_taken(monkeypatch):
    monkeypatch.setattr(accountants, "MOST_ROWS", 50)
    accountant, events = PLDAccountant(), decaying(steps=60, rate=1e-3)
    limit = accountant.epsilon(ledger_of(events), 1e-5)
    tracker = accountant.tracker()
    for event in events[:-1]:
        tracker.add(event)
    assert tracker.stays_within(events[-1], limit, 1e-5)
    assert not tracker.stays_within(events[-1], limit * 0.999, 1e-5)
