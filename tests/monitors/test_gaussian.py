"""The exact curve of the Gaussian mechanism."""

import math

import mpmath as mp
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from monitors import gaussian_delta, gaussian_epsilon, gaussian_mu
from monitors.gaussian import combined_multiplier

mus = st.floats(-6, 3).map(lambda power: 10.0**power)
deltas = st.floats(-14, -0.1).map(lambda power: 10.0**power)


def truth(mu, epsilon):
    with mp.workdps(60):
        mu, epsilon = mp.mpf(mu), mp.mpf(epsilon)
        return mp.ncdf(mu / 2 - epsilon / mu) - mp.exp(epsilon) * mp.ncdf(-mu / 2 - epsilon / mu)


@given(mus, deltas)
@example(mu=10.0**-2.484375, delta=10.0**-3.07421875)
@settings(max_examples=80, deadline=None)
def test_epsilon_meets_delta_and_no_smaller_one_does(mu, delta):
    epsilon = gaussian_epsilon(mu, delta)
    assert truth(mu, epsilon) <= mp.mpf(delta) * (1 + mp.mpf("1e-15"))
    if epsilon > 0:
        assert truth(mu, epsilon * (1 - 1e-8)) > delta


@given(mus, st.floats(0, 6))
@settings(max_examples=80, deadline=None)
def test_delta_agrees_with_60_digits_and_is_not_below(mu, deviations):
    epsilon = mu * (mu / 2 + deviations)
    expected = truth(mu, epsilon)
    found = gaussian_delta(mu, epsilon)
    # epsilon itself is rounded: at large mu, one ulp of epsilon changes delta
    slack = 1e-9 + 4e-16 * epsilon * (1 + deviations) / mu
    assert found == pytest.approx(float(expected), rel=slack)


@given(st.floats(0.01, 30), deltas)
@settings(max_examples=40, deadline=None)
def test_gaussian_mu_is_the_inverse_of_gaussian_epsilon(epsilon, delta):
    assert gaussian_epsilon(gaussian_mu(epsilon, delta), delta) == pytest.approx(epsilon, rel=1e-6)


@pytest.mark.parametrize(("factor", "epsilon"), [(1, 10.67), (2, 26.18)])
def test_ten_shuffled_epochs_at_multiplier_one_and_a_half(factor, epsilon):
    assert gaussian_epsilon(factor * math.sqrt(10) / 1.5, 1e-5) == pytest.approx(epsilon, abs=5e-3)


@pytest.mark.parametrize("mu", [0.0, 1e-300, 1e-12, 1e12, 1e200, math.inf])
def test_extreme_mu_gives_a_bound_and_no_exception(mu):
    assert gaussian_epsilon(mu, 1e-5) >= 0
    assert 0 <= gaussian_delta(mu, 1.0) <= 1


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan, 2.0])
def test_delta_out_of_range_is_refused_by_name(delta):
    with pytest.raises(ValueError, match="delta"):
        gaussian_epsilon(1.0, delta)


def test_several_multipliers_combine_by_their_inverse_squares():
    assert combined_multiplier([3.0, 4.0]) == pytest.approx((1 / 9 + 1 / 16) ** -0.5)
    assert combined_multiplier([1e-200, 5.0]) == pytest.approx(1e-200)


@pytest.mark.parametrize("mu", [-1.0, math.nan, "1"])
def test_an_invalid_mu_is_refused_by_name(mu):
    with pytest.raises(ValueError, match="mu"):
        gaussian_epsilon(mu, 1e-5)
