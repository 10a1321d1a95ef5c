"""Private counts, histograms and numbers."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechanisms import CountingQuery, LaplaceMechanism
from mechanisms.answers import REPRODUCIBLE, answers_beyond, asked_ledgers, forget_asked
from monitors import LaplaceEvent, Ledger

DRAWS = 6000


def test_the_noise_is_laplace_noise_of_the_stated_scale():
    from scipy.stats import kstest, laplace

    noise = LaplaceMechanism(epsilon=0.5, sensitivity=3.0).release(np.zeros(DRAWS), Ledger())
    # the array is one answer, so its scale compensates for the rounding of all its numbers
    assert kstest(noise, laplace(scale=6.0).cdf).pvalue > 1e-9


@pytest.mark.parametrize("scale", [1, 3])
def test_integer_noise_has_the_masses_of_rounded_laplace_noise(scale):
    mechanism = LaplaceMechanism(1.0)
    drawn = np.array([mechanism._noise(scale) for _ in range(DRAWS)])
    for value in (-2, -1, 0, 1, 2):
        size = abs(value)
        tail = 0.5 * (math.exp(-(size - 0.5) / scale) - math.exp(-(size + 0.5) / scale))
        expected = tail if value else -math.expm1(-0.5 / scale)
        deviation = math.sqrt(expected * (1 - expected) / DRAWS)
        assert abs((drawn == value).mean() - expected) < 6.5 * deviation


@given(st.floats(0.01, 10.0), st.floats(1e-6, 1e6), st.floats(-1e9, 1e9))
def test_the_cost_is_recorded_and_the_answer_is_close(epsilon, sensitivity, value):
    ledger, mechanism = Ledger(), LaplaceMechanism(epsilon, sensitivity)
    answer = mechanism.release(value, ledger)
    assert [event for event, _ in ledger] == [LaplaceEvent(1 / epsilon)]
    assert abs(answer - value) < 40 * mechanism.scale + 1e-6 * abs(value)


def test_answers_lie_on_a_grid_that_does_not_depend_on_the_value():
    mechanism, ledger = LaplaceMechanism(epsilon=1.0), Ledger()
    for value in (0.0, 1 / 3, math.pi):
        answer = mechanism.release(value, ledger) * 2.0**40
        assert answer == round(answer)


def test_a_count_is_a_whole_number_and_a_histogram_costs_one_release():
    query, ledger = CountingQuery(epsilon=50.0), Ledger()
    assert query.count(np.arange(100) < 30, ledger) == 30
    assert query.histogram([0, 1, 1, 2, 7, -1], 3, ledger).tolist() == [1, 2, 1]
    assert ledger.total == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda ledger: CountingQuery(1.0).count(np.ones(3), ledger), "one boolean per example"),
        (lambda ledger: CountingQuery(1.0).count(np.ones((3, 2), bool), ledger), r"shape \(3, 2\)"),
        (lambda ledger: CountingQuery(1.0).histogram([0.5], 2, ledger), "one integer per example"),
        (lambda ledger: CountingQuery(1.0).histogram([0], 0, ledger), "num_classes must be"),
        (lambda ledger: LaplaceMechanism(1.0).release(math.nan, ledger), "all finite"),
        (lambda ledger: LaplaceMechanism(1.0).release([], ledger), "at least one number"),
        (lambda ledger: LaplaceMechanism(1.0).release(1.0, []), "must be a monitors.Ledger"),
        (lambda ledger: LaplaceMechanism(0.0), "epsilon must be a positive finite number"),
        (lambda ledger: LaplaceMechanism(1.0, math.inf), "sensitivity must be a positive finite number"),
        (lambda ledger: LaplaceMechanism(1e-150, 1e150), "noise scale"),
    ],
)
def test_invalid_queries_are_refused_and_cost_nothing(call, message):
    ledger = Ledger()
    with pytest.raises(ValueError, match=message):
        call(ledger)
    assert len(ledger) == 0


def test_secret_noise_never_repeats_and_a_seed_voids_the_guarantee():
    secret, ledger = LaplaceMechanism(1.0), Ledger()
    assert secret.release(0.0, ledger) != LaplaceMechanism(1.0).release(0.0, ledger)
    assert ledger.notes == ()
    assert LaplaceMechanism(1.0, seed=3).release(0.0, ledger) == LaplaceMechanism(1.0, seed=3).release(0.0, ledger)
    assert REPRODUCIBLE in ledger.notes


def test_ledgers_with_queries_are_known_until_they_are_forgotten():
    ledger = Ledger()
    CountingQuery(1.0).count([True], ledger)
    CountingQuery(1.0).count([True], ledger)
    assert sum(known is ledger for known in asked_ledgers()) == 1
    CountingQuery(1.0).count([True], Ledger())
    assert answers_beyond(ledger) == 1
    assert answers_beyond(ledger.copy()) == 1
    assert answers_beyond(Ledger().record(LaplaceEvent(1.0), 3)) == 3
    forget_asked(ledger)
    assert answers_beyond(Ledger()) == 1
