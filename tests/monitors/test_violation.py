"""A violation on a ledger makes all of its figures infinite, for every accountant and in every form of the ledger."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitors import (
    BudgetExceededError,
    ComposedEvent,
    DisjointEvent,
    GaussianEvent,
    Ledger,
    PoissonSampledEvent,
    PrivacyFilter,
    RepeatedEvent,
    ViolationEvent,
    calibrate_noise_multiplier,
    event_from_dict,
    group_epsilon,
    relation_of,
    replace_one_epsilon,
)
from monitors.errors import CalibrationError
from monitors.spent import describe_sampling, privacy_spent, resolve_accountant

SAMPLED = PoissonSampledEvent(0.01, GaussianEvent(1.0))
UNSAMPLED = GaussianEvent(3.0)
VIOLATION = ViolationEvent("the weights were changed after step 7")
ACCOUNTANTS = [("rdp", SAMPLED), ("pld", SAMPLED), ("zcdp", UNSAMPLED), ("rdp", DisjointEvent(0, UNSAMPLED))]

wrapped = st.recursive(
    st.just(VIOLATION),
    lambda inner: st.one_of(
        st.builds(PoissonSampledEvent, st.floats(0.01, 1.0), inner),
        st.builds(lambda event: ComposedEvent((GaussianEvent(2.0), event)), inner),
        st.builds(RepeatedEvent, inner, st.integers(1, 5)),
        st.builds(DisjointEvent, st.integers(0, 3), inner),
    ),
    max_leaves=3,
)


@pytest.mark.parametrize(("name", "event"), ACCOUNTANTS)
def test_every_figure_is_finite_before_a_violation_and_infinite_after_it(name, event):
    accountant, ledger = resolve_accountant(name), Ledger().record(event, 20)
    tracker = accountant.tracker()
    tracker.add(event, 20)
    assert 0 < accountant.epsilon(ledger, 1e-5) < math.inf
    assert 0 < tracker.epsilon(1e-5) < math.inf
    assert math.isinf(tracker.epsilon_with(VIOLATION, 1e-5))
    assert tracker.delta_with(VIOLATION, 5.0) == 1
    for later in (VIOLATION, event):
        ledger.record(later)
        tracker.add(later)
        assert math.isinf(accountant.epsilon(ledger, 1e-5))
        assert math.isinf(tracker.epsilon(1e-5))
        assert accountant.delta(ledger, 1e6) == tracker.delta(1e6) == 1
        tracker.tighten(1e-5)
        assert not tracker.stays_within(event, 1e9, 1e-5)
    assert accountant.epsilon(ledger.head(20), 1e-5) < math.inf
    assert math.isinf(accountant.epsilon(ledger.head(21), 1e-5))


@given(wrapped)
def test_a_violation_inside_any_event_counts_and_survives_serialisation(event):
    ledger = Ledger().record(UNSAMPLED).record(event)
    assert event_from_dict(event.to_dict()) == event
    assert ledger.violations == (VIOLATION.reason,)
    for name in ("rdp", "pld", "zcdp"):
        assert math.isinf(resolve_accountant(name).epsilon(ledger, 1e-5))


def test_ledgers_with_a_violation_are_saved_merged_and_shortened_like_others():
    ledger = Ledger(["a note"]).record(SAMPLED, 3).record(SAMPLED, 2, lost=True).record(VIOLATION)
    again = Ledger.from_json(ledger.to_json())
    assert again == ledger
    assert again.digest() == ledger.digest() != ledger.head(5).digest()
    assert Ledger().record(SAMPLED).merge(ledger).violations == ledger.kept.violations == (VIOLATION.reason,)
    assert ledger.lost.violations == ledger.head(5).violations == ()
    assert ledger.caveats == ("the guarantee is void: the weights were changed after step 7", "a note")
    assert ledger.record(VIOLATION).violations == (VIOLATION.reason,)


def test_the_reason_accompanies_the_figure_and_sampling_and_relation_are_unaffected():
    ledger = Ledger().record(SAMPLED, 3).record(VIOLATION)
    spent = privacy_spent(ledger, 1e-5)
    assert "epsilon infinite" in str(spent)
    assert VIOLATION.reason in str(spent)
    assert spent.to_dict()["epsilon"] == "inf"
    assert describe_sampling(ledger) == describe_sampling(ledger.head(3))
    assert relation_of(ledger) == relation_of(ledger.head(3))
    shuffled = Ledger().record(DisjointEvent(0, UNSAMPLED))
    assert relation_of(shuffled.copy().record(VIOLATION)) == relation_of(shuffled)
    assert math.isinf(group_epsilon(ledger, 1e-5, 3))
    assert math.isinf(replace_one_epsilon(ledger, 1e-5))


def test_a_filter_records_a_violation_and_allows_nothing_after_it():
    filter_ = PrivacyFilter(3.0, 1e-5)
    filter_.charge(GaussianEvent(100.0))
    filter_.charge(VIOLATION)
    assert filter_.ledger.violations == (VIOLATION.reason,)
    assert math.isinf(filter_.spent_share)
    assert not filter_.allows(GaussianEvent(1e6))
    with pytest.raises(BudgetExceededError):
        filter_.charge(GaussianEvent(1e6))


def test_no_noise_can_be_calibrated_for_a_ledger_with_a_violation():
    with pytest.raises(CalibrationError):
        calibrate_noise_multiplier(3.0, 1e-5, lambda sigma: Ledger().record(GaussianEvent(sigma)).record(VIOLATION))


@pytest.mark.parametrize("reason", ["", "  ", None, 3])
def test_a_violation_without_a_reason_is_refused(reason):
    with pytest.raises(ValueError, match="reason must be a non-empty string"):
        ViolationEvent(reason)


def test_covers_compares_counts_and_ignores_order_and_partition_numbers():
    one = Ledger().record(DisjointEvent(0, UNSAMPLED)).record(SAMPLED, 2)
    more = Ledger().record(SAMPLED, 3).record(DisjointEvent(7, UNSAMPLED))
    assert more.covers(one)
    assert not one.covers(more)
    assert one.covers(Ledger())
    assert not Ledger().covers(one)
