"""Calibration comes close to its target and never exceeds it."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitors import (
    ACCOUNTANTS,
    CalibrationError,
    GaussianEvent,
    Ledger,
    PLDAccountant,
    PoissonSampledEvent,
    RDPAccountant,
    calibrate_noise_multiplier,
    calibrate_parameter,
    decay_rate_for,
    max_steps,
    resolve_accountant,
)
from monitors.schedules import DECAYS, decayed


def poisson(rate, steps):
    return lambda sigma: Ledger().record(PoissonSampledEvent(rate, GaussianEvent(sigma)), steps)


@given(
    st.floats(-2, 4).map(lambda power: 10.0**power),
    st.floats(-9, -2).map(lambda power: 10.0**power),
    st.floats(1e-4, 0.5),
    st.integers(1, 10000),
)
@settings(max_examples=30, deadline=None)
def test_the_target_is_nearly_reached_and_never_exceeded(epsilon, delta, rate, steps):
    make_ledger = poisson(rate, steps)
    sigma = calibrate_noise_multiplier(epsilon, delta, make_ledger)
    reached = RDPAccountant().epsilon(make_ledger(sigma), delta)
    assert reached <= epsilon
    if sigma > 0.0101 and RDPAccountant().epsilon(make_ledger(sigma * 0.999), delta) <= epsilon:
        assert reached >= epsilon * (1 - 2e-4)


@pytest.mark.parametrize("policy", DECAYS.names())
@pytest.mark.parametrize("name", ["rdp", "pld"])
@pytest.mark.sample(6)
def test_the_initial_multiplier_of_every_decay_is_found(policy, name):
    def make_ledger(sigma):
        schedule, ledger = decayed(sigma, policy, 2e-3), Ledger()
        for step in range(200):
            ledger.record(PoissonSampledEvent(0.02, GaussianEvent(schedule(step))))
        return ledger

    sigma = calibrate_noise_multiplier(2.0, 1e-5, make_ledger, name)
    assert 1.999 <= resolve_accountant(name).epsilon(make_ledger(sigma), 1e-5) <= 2.0


def test_the_zcdp_target_is_met_for_full_batches():
    sigma = calibrate_noise_multiplier(1.0, 1e-5, lambda sigma: Ledger().record(GaussianEvent(sigma), 10), "zcdp")
    assert sigma == pytest.approx(math.sqrt(10) / 0.26805, rel=1e-3)


def test_the_tighter_accountant_needs_less_noise():
    make_ledger = poisson(0.01, 1000)
    assert calibrate_noise_multiplier(2.0, 1e-5, make_ledger, PLDAccountant()) < calibrate_noise_multiplier(
        2.0, 1e-5, make_ledger
    )


def test_an_impossible_target_names_the_nearest_reachable_epsilon():
    def make_ledger(sigma):
        return Ledger().record(GaussianEvent(2.0)).record(GaussianEvent(sigma))

    with pytest.raises(CalibrationError, match=r"epsilon is still 1\.98|epsilon is still 2\.\d"):
        calibrate_noise_multiplier(0.5, 1e-5, make_ledger)


def test_a_generous_target_gives_the_smallest_multiplier_in_the_range():
    assert calibrate_noise_multiplier(1e7, 1e-5, poisson(0.01, 1)) == 0.01


@pytest.mark.parametrize(("epsilon", "delta"), [(0.0, 1e-5), (-1.0, 1e-5), (math.nan, 1e-5), (1.0, 0.0), (1.0, 1.0)])
def test_invalid_targets_are_refused(epsilon, delta):
    with pytest.raises(ValueError, match="target"):
        calibrate_noise_multiplier(epsilon, delta, poisson(0.01, 10))


def test_an_unknown_accountant_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match="did you mean 'rdp'"):
        calibrate_noise_multiplier(1.0, 1e-5, poisson(0.01, 10), "rpd")
    assert ACCOUNTANTS.names() == ("pld", "rdp", "zcdp")


@given(st.floats(0.3, 8), st.floats(0.005, 0.3), st.floats(0.7, 5))
@settings(max_examples=20, deadline=None)
def test_one_step_more_than_max_steps_exceeds_the_target(epsilon, rate, sigma):
    def make_ledger(steps):
        return poisson(rate, steps)(sigma)

    most = max_steps(epsilon, 1e-5, make_ledger)
    accountant = RDPAccountant()
    assert accountant.epsilon(make_ledger(most + 1), 1e-5) > epsilon
    assert most == 0 or accountant.epsilon(make_ledger(most), 1e-5) <= epsilon


def test_exceeding_the_step_limit_is_an_error():
    with pytest.raises(CalibrationError, match="more than 1000 steps"):
        max_steps(10.0, 1e-5, lambda steps: poisson(0.001, steps)(50.0), limit=1000)


def test_the_fastest_decay_within_the_target_is_found():
    def make_ledger(rate):
        schedule, ledger = decayed(3.0, "Time", rate), Ledger()
        for step in range(100):
            ledger.record(PoissonSampledEvent(0.05, GaussianEvent(schedule(step))))
        return ledger

    rate = calibrate_parameter(2.0, 1e-5, make_ledger, low=0.0, high=1.0)
    assert 1.999 <= RDPAccountant().epsilon(make_ledger(rate), 1e-5) <= 2.0
    with pytest.raises(CalibrationError, match="already"):
        calibrate_parameter(0.01, 1e-5, make_ledger, low=0.0, high=1.0)


@pytest.mark.parametrize("policy", DECAYS.names())
def test_the_decay_rate_reaches_the_final_multiplier_at_the_last_step(policy):
    rate = decay_rate_for(policy, 3.0, 1.0, 500)
    assert decayed(3.0, policy, rate)(499) == pytest.approx(1.0, rel=1e-6)


def test_a_decay_cannot_increase():
    with pytest.raises(ValueError, match="final"):
        decay_rate_for("Exp", 1.0, 2.0, 10)
