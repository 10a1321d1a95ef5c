"""Bounds on epsilon: against independent computations, and with the coverage that they claim."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dpmodel.audit.bounds import (
    ErrorCounts,
    Guesses,
    f_dp_epsilon,
    f_dp_mu,
    f_dp_p_value,
    f_dp_rejects,
    gaussian_mu_bound,
    gaussian_p_value,
    one_run_epsilon,
    one_run_p_value,
)
from dpmodel.audit.scores import Expected, simulated_scores
from monitors import GaussianEvent, Ledger, PLDAccountant, PoissonSampledEvent
from monitors.gaussian import gaussian_epsilon


def one_run_by_definition(m, r, v, epsilon, delta):
    """Theorem 5.2 term by term: the largest mean probability of the counts just below ``v``."""
    success = math.exp(epsilon) / (1 + math.exp(epsilon))
    mass = [math.comb(r, k) * success**k * (1 - success) ** (r - k) for k in range(r + 1)]
    slopes = [sum(mass[v - i : v]) / i for i in range(1, v + 1)]
    return min(1.0, sum(mass[v:]) + 2 * m * delta * max(slopes, default=0.0))


@given(
    st.integers(1, 60).flatmap(lambda r: st.tuples(st.just(r), st.integers(0, r))),
    st.integers(0, 500),
    st.floats(0, 5),
    st.sampled_from([0.0, 1e-6, 1e-4]),
)
@settings(max_examples=60, deadline=None)
def test_the_one_run_p_value_is_that_of_the_theorem(counts, more, epsilon, delta):
    made, correct = counts
    found = one_run_p_value(Guesses(made + more, made, correct), epsilon, delta)
    assert found == pytest.approx(one_run_by_definition(made + more, made, correct, epsilon, delta), rel=1e-9)


def test_the_one_run_bound_is_the_published_one():
    # Steinke, Nasr and Jagielski 2023, appendix D
    assert one_run_epsilon(Guesses(1000, 100, 75), 1e-4) == pytest.approx(0.673, abs=1e-3)


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0])
def test_the_one_run_bound_rarely_exceeds_the_epsilon_of_randomised_response(epsilon):
    made = 200
    success = 1 / (1 + math.exp(-epsilon))
    mass = stats.binom.pmf(np.arange(made + 1), made, success)
    exceeds = [one_run_epsilon(Guesses(1000, made, k), 0.0) > epsilon + 1e-3 for k in range(made + 1)]
    assert 0.001 < mass[exceeds].sum() <= 0.05


def f_dp_by_arrays(m, made, correct, mu, level):
    """The paper's algorithm with its arrays, without stopping early."""
    r, h = [0.0] * (correct + 1), [0.0] * (correct + 1)
    r[correct], h[correct] = level * correct / m, level * (made - correct) / m
    for i in range(correct - 1, -1, -1):
        h[i] = max(h[i + 1], stats.norm.cdf(stats.norm.ppf(r[i + 1]) - mu))
        r[i] = r[i + 1] + i / (made - i) * (h[i] - h[i + 1])
    return r[0] + h[0] > made / m


@given(st.integers(1, 80), st.data())
@settings(max_examples=25, deadline=None)
def test_the_f_dp_test_is_the_paper_s_algorithm(made, data):
    correct, more = data.draw(st.integers(1, made)), data.draw(st.integers(0, 200))
    mu, level = data.draw(st.floats(0, 3)), data.draw(st.sampled_from([0.05, 0.001]))
    found = f_dp_rejects(Guesses(made + more, made, correct), mu, level)
    assert found == f_dp_by_arrays(made + more, made, correct, mu, level)


@pytest.mark.parametrize("mu", [0.3, 1.0])
def test_the_f_dp_bound_rarely_exceeds_the_mu_of_independent_gaussian_releases(mu):
    canaries = 200
    mass = stats.binom.pmf(np.arange(canaries + 1), canaries, stats.norm.cdf(mu / 2))
    likely = np.flatnonzero(mass > 1e-7)
    wrong = sum(mass[k] for k in likely if f_dp_rejects(Guesses(canaries, canaries, int(k)), mu, 0.05))
    assert wrong <= 0.05
    assert f_dp_rejects(Guesses(canaries, canaries, round(canaries * stats.norm.cdf((mu + 2) / 2))), mu, 0.05)


def test_the_f_dp_bound_is_tighter_than_the_general_one():
    guesses = Guesses(2000, 2000, 1330)
    assert f_dp_epsilon(guesses, 1e-5) > one_run_epsilon(guesses, 1e-5)


def test_error_rates_have_the_limits_of_clopper_and_pearson():
    errors = ErrorCounts(40, 500, 120, 480)
    highs = [stats.binomtest(k, n).proportion_ci(0.95, method="exact").high for k, n in ((40, 500), (120, 480))]
    assert errors.largest_rates(0.95) == pytest.approx(highs)


@pytest.mark.sample(6)
@pytest.mark.parametrize("mu", [0.0, 0.7, 2.0])
@pytest.mark.parametrize("rate", [0.003, 0.1, 0.4, 0.9])
@pytest.mark.parametrize("level", [0.05, 0.001])
def test_the_gaussian_bound_exceeds_mu_as_rarely_as_it_claims(mu, rate, level):
    outside, inside = 40, 33
    masses = [
        stats.binom.pmf(np.arange(total + 1), total, part)
        for total, part in ((outside, rate), (inside, stats.norm.cdf(-stats.norm.ppf(rate) - mu)))
    ]
    wrong = sum(
        float(first * second)
        for count, first in enumerate(masses[0])
        for other, second in enumerate(masses[1])
        if first * second > 1e-8 and gaussian_p_value(ErrorCounts(count, outside, other, inside), mu) < level
    )
    assert wrong <= level


def test_the_gaussian_bound_exceeds_that_of_two_separate_intervals():
    for errors in (ErrorCounts(40, 500, 120, 480), ErrorCounts(0, 1000, 700, 1000), ErrorCounts(300, 1000, 390, 1000)):
        separate = -stats.norm.ppf(errors.largest_rates(0.99)).sum()
        counts = ((errors.false_positives, errors.outside), (errors.false_negatives, errors.inside))
        estimate = -sum(stats.norm.ppf((count + 0.5) / (total + 1)) for count, total in counts)
        assert separate < gaussian_mu_bound(errors) < estimate


@pytest.mark.parametrize(("sigma", "rate", "steps"), [(1.5, 1 / 11, 150), (4.0, 0.25, 200), (1.2, 1.0, 2)])
@pytest.mark.slow
def test_three_fifths_of_epsilon_are_found(sigma, rate, steps):
    step = PoissonSampledEvent(rate, GaussianEvent(sigma)) if rate < 1 else GaussianEvent(sigma)
    epsilon, draw = PLDAccountant().epsilon(Ledger().record(step, steps), 1e-5), np.random.default_rng(1)
    sigmas, found = np.full(steps, sigma), []
    threshold = Expected(*simulated_scores(sigmas, rate, 1.0, 20000, draw), 2000).threshold()
    for _ in range(20):
        errors = ErrorCounts.at(threshold, *simulated_scores(sigmas, rate, 1.0, 2000, draw))
        found.append(gaussian_epsilon(gaussian_mu_bound(errors), 1e-5) / epsilon)
    assert np.mean(found) > 0.68
    assert np.mean(np.array(found) > 0.6) >= 0.7
    assert max(found) < 1.1


@pytest.mark.parametrize("p_value", [0.03, 1e-3, 1e-6])
def test_the_p_values_invert_the_bounds(p_value):
    guesses, errors = Guesses(500, 400, 280), ErrorCounts(60, 500, 150, 500)
    epsilon = one_run_epsilon(guesses, 0.0, 1 - p_value)
    assert one_run_p_value(guesses, epsilon, 0.0) == pytest.approx(p_value, rel=0.01)
    assert f_dp_p_value(guesses, f_dp_mu(guesses, 1 - p_value)) == pytest.approx(p_value, rel=0.05)
    assert gaussian_p_value(errors, gaussian_mu_bound(errors, 1 - p_value)) == pytest.approx(p_value, rel=0.05)


def test_nothing_is_concluded_from_guesses_at_random():
    assert one_run_epsilon(Guesses(1000, 1000, 500), 1e-5) == 0.0
    assert f_dp_mu(Guesses(1000, 1000, 500)) == 0.0
    assert gaussian_mu_bound(ErrorCounts(250, 500, 250, 500)) == 0.0
    assert gaussian_mu_bound(ErrorCounts(0, 0, 0, 10)) == 0.0


def test_guesses_take_the_clearest_scores():
    scores = np.array([0.1, 5.0, -4.0, 0.2, 3.0, -6.0])
    included = np.array([True, True, False, False, False, False])
    assert Guesses.of(scores, included, 4) == Guesses(6, 4, 3)
    with pytest.raises(ValueError, match="correct <= made"):
        Guesses(5, 6, 3)
