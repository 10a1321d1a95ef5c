"""The trade-off curve: laws, an independent accountant, and closed forms."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from monitors import GaussianEvent, LaplaceEvent, Ledger, NonPrivateEvent, PLDAccountant, PoissonSampledEvent
from monitors.errors import UnsupportedEventError
from monitors.events import DisjointEvent, RandomStoppingEvent, ViolationEvent
from monitors.gaussian import gaussian_delta
from monitors.trade_off import FLOOR, TradeOffCurve

CASES = [(1.5, 256 / 60_000, 2340), (9.4, 0.328, 2000), (1.0, 0.05, 100), (0.7, 0.004, 1000)]


def sampled(sigma, rate, steps):
    return Ledger().record(PoissonSampledEvent(rate, GaussianEvent(sigma)), steps)


@pytest.fixture(scope="module")
def curves():
    return {case: TradeOffCurve.of(sampled(*case)) for case in CASES}


@pytest.fixture(scope="module")
def peers():
    """The same compositions by Google's accountant."""
    library = pytest.importorskip("dp_accounting.pld.privacy_loss_distribution")
    return {
        (sigma, rate, steps): library.from_gaussian_mechanism(
            sigma, sampling_prob=rate, value_discretization_interval=2e-4
        ).self_compose(steps)
        for sigma, rate, steps in CASES
    }


def peer_tests(peer):
    """False-positive and false-negative rates of each threshold test, in both directions, from the peer's masses."""
    found = []
    for pmf in (peer._pmf_remove, peer._pmf_add):
        dense = pmf.to_dense_pmf()
        masses = np.asarray(dense._probs)
        losses = (dense._lower_loss + np.arange(masses.size)) * dense._discretization
        positives = np.cumsum((masses * np.exp(-losses))[::-1])
        found.append((positives, 1.0 - dense._infinity_mass - np.cumsum(masses[::-1])))
    return found


@pytest.mark.parametrize("case", CASES)
def test_the_advantage_is_that_of_an_independent_accountant(case, curves, peers):
    assert curves[case].advantage == pytest.approx(peers[case].get_delta_for_epsilon(0.0), abs=2e-4)


@pytest.mark.sample(2)
@pytest.mark.parametrize("case", CASES)
def test_mu_is_that_of_an_independent_accountant(case, curves, peers):
    # mu by its definition: the Gaussian curve must lie below every tangent of the peer's curve. A tangent of slope
    # -e^epsilon touches the axis of false positives at (1 - delta) / e^epsilon.
    grid = np.linspace(0, -math.log(FLOOR), 3000)
    deltas = np.array(peers[case].get_delta_for_epsilon(grid))
    rates = np.geomspace(FLOOR, 0.5, 2000)
    missed = np.max(1 - deltas[:, None] - np.exp(grid)[:, None] * rates, axis=0)
    above = missed > rates
    mu = np.max(norm.isf(rates[above]) + norm.isf(missed[above]))
    assert curves[case].gaussian_fit()[0] == pytest.approx(mu, abs=1e-3)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rate", [0.001, 0.01, 0.1])
def test_no_threshold_test_of_the_peer_is_better_than_the_bound(case, rate, curves, peers):
    best = 0.0
    for positives, missed in peer_tests(peers[case]):
        best = max(best, float(np.interp(rate, positives, 1 - missed)))
    assert curves[case].true_positive_rate(rate) >= best - 2e-4
    assert curves[case].true_positive_rate(rate) <= best + 2e-3


def test_a_published_mu_and_regret_are_found_again(curves):
    # README of gdpnum, the authors' implementation of Gomez et al. 2025: (1.56856, 0.00102).
    mu, regret = curves[(9.4, 0.328, 2000)].gaussian_fit()
    assert mu == pytest.approx(1.5685621993129137, abs=1e-3)
    assert regret == pytest.approx(0.0010208130697719753, abs=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_the_gaussian_curve_lies_below_and_its_regret_is_their_distance(case, curves):
    curve = curves[case]
    mu, regret = curve.gaussian_fit()
    rates = np.concatenate([np.geomspace(FLOOR, 0.4, 300), 1 - np.geomspace(FLOOR, 0.4, 300)])
    rates = rates[curve.false_negative_rates(rates) >= FLOOR]
    lower = norm.cdf(-norm.ppf(rates) - mu)
    assert np.all(lower <= curve.false_negative_rates(rates) + 1e-12)
    tight = norm.cdf(-norm.ppf(rates) - (mu - 1e-3))
    assert np.any(tight > curve.false_negative_rates(rates))
    # Moved by the regret, the Gaussian curve is nowhere below the curve: f(a + k) - k <= g(a).
    moved = np.clip(rates + regret, 1e-12, 1 - 1e-12)
    assert np.all(curve.false_negative_rates(moved) - regret <= lower + 1e-6)


@settings(max_examples=15, deadline=None)
@given(st.floats(0.05, 6.0), st.floats(1e-4, 0.5))
def test_a_gaussian_mechanism_has_its_closed_form(mu, rate):
    curve = TradeOffCurve.of([(GaussianEvent(1 / mu), 1)])
    assert curve.gaussian_fit() == (pytest.approx(mu, rel=1e-12), 0.0)
    assert curve.true_positive_rate(rate) == pytest.approx(norm.cdf(norm.ppf(rate) + mu), rel=1e-9)
    assert curve.advantage == pytest.approx(2 * norm.cdf(mu / 2) - 1, rel=1e-9)


def test_a_rate_of_almost_one_is_almost_the_gaussian_mechanism():
    sampled_curve = TradeOffCurve.of(sampled(2.0, 1 - 1e-9, 4))
    exact = TradeOffCurve.of([(GaussianEvent(2.0), 4)])
    assert sampled_curve.gaussian_fit()[0] == pytest.approx(exact.gaussian_fit()[0], abs=1e-3)
    assert sampled_curve.gaussian_fit()[1] < 1e-3
    assert sampled_curve.true_positive_rate(0.01) == pytest.approx(exact.true_positive_rate(0.01), abs=1e-3)


@settings(max_examples=15, deadline=None)
@given(st.floats(0.6, 5.0), st.floats(0.001, 0.9), st.integers(1, 200))
def test_every_curve_is_a_symmetric_trade_off_curve(sigma, rate, steps):
    curve = TradeOffCurve.of(sampled(sigma, rate, steps))
    rates = np.linspace(1e-3, 1 - 1e-3, 41)
    missed = curve.false_negative_rates(rates)
    assert np.all(missed <= 1 - rates + 1e-12)
    assert np.all(np.diff(missed) <= 1e-12)
    assert np.all(np.diff(missed, 2) >= -1e-9)
    inner = (missed > 1e-6) & (missed < 1 - 1e-6)
    assert curve.false_negative_rates(missed[inner]) == pytest.approx(rates[inner], abs=1e-6)
    assert curve.posterior(0.01) == pytest.approx(1 / (1 + 0.01 / curve.true_positive_rate(0.01)))


@pytest.mark.parametrize("case", CASES)
def test_the_profile_is_that_of_the_accountant(case, curves):
    for delta in (1e-3, 1e-5, 1e-8, 1e-10):
        expected = PLDAccountant().epsilon(sampled(*case), delta)
        assert curves[case].epsilon(delta) == pytest.approx(expected, rel=3e-3, abs=1e-6)


def test_more_releases_never_help_against_an_attacker():
    powers = [TradeOffCurve.of(sampled(1.2, 0.01, steps)).true_positive_rate(0.01) for steps in (10, 100, 1000)]
    assert powers == sorted(powers)
    assert powers[0] > 0.01


@pytest.mark.parametrize("case", CASES[:3])
def test_the_losses_are_a_distribution_that_gives_the_curve_back(case, curves):
    values, curve = curves[case].losses(), curves[case]
    masses = np.array(values["probabilities"])
    losses = values["interval"] * (values["first"] + np.arange(masses.size))
    assert masses.min() >= 0
    assert masses.sum() + values["infinite"] == pytest.approx(1.0, abs=1e-9)
    for epsilon in curve.epsilons[::400]:
        above = losses > epsilon
        delta = masses[above] @ -np.expm1(epsilon - losses[above]) + values["infinite"]
        assert delta == pytest.approx(curve.deltas[np.searchsorted(curve.epsilons, epsilon)], rel=1e-6, abs=1e-14)


def test_another_accountant_reads_the_losses(curves):
    pmf = pytest.importorskip("dp_accounting.pld.pld_pmf")
    values = curves[CASES[0]].losses()
    dense = pmf.DensePLDPmf(
        values["interval"], values["first"], np.array(values["probabilities"]), values["infinite"], True
    )
    expected = PLDAccountant().epsilon(sampled(*CASES[0]), 1e-5)
    assert dense.get_epsilon_for_delta(1e-5) == pytest.approx(expected, rel=3e-3)


def test_a_changing_schedule_is_bounded_by_its_ends():
    ledger = Ledger()
    for step in range(200):
        ledger.record(PoissonSampledEvent(0.01, GaussianEvent(1.0 + step / 200)))
    powers = [TradeOffCurve.of(each).true_positive_rate(0.01) for each in (sampled(2.0, 0.01, 200), ledger)]
    assert powers[0] < powers[1] < TradeOffCurve.of(sampled(1.0, 0.01, 200)).true_positive_rate(0.01)


def test_partitions_and_other_noise_have_a_curve():
    shuffled = [(DisjointEvent(epoch, GaussianEvent(4.0)), 10) for epoch in range(4)]
    assert TradeOffCurve.of(shuffled).gaussian_fit() == (pytest.approx(0.5), 0.0)
    laplace = TradeOffCurve.of([(LaplaceEvent(1.0), 1)])
    # The total variation is 1 - exp(-1/2); at epsilon 1 and delta 0, no mechanism has more than (e - 1) / (e + 1).
    assert 1 - math.exp(-0.5) <= laplace.advantage <= (math.e - 1) / (math.e + 1)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 3.0, 15.0])
def test_a_laplace_mechanism_has_its_total_variation_and_its_pure_epsilon(epsilon):
    curve = TradeOffCurve.of([(LaplaceEvent(1 / epsilon), 1)])
    exact = -math.expm1(-epsilon / 2)
    assert exact <= curve.advantage <= exact + 1e-4
    for delta in (1e-3, 1e-6, 1e-10):
        assert curve.epsilon(delta) <= epsilon * 1.002
    # At small rates, the best test has exactly e^epsilon times the false-positive rate.
    assert curve.true_positive_rate(0.001) == pytest.approx(min(1.0, 0.001 * math.exp(epsilon)), rel=0.02)
    assert curve.gaussian_fit()[0] < 1.3 * epsilon


def test_laplace_releases_agree_with_an_independent_accountant():
    library = pytest.importorskip("dp_accounting.pld.privacy_loss_distribution")
    peer = library.from_laplace_mechanism(0.36, value_discretization_interval=2e-4).self_compose(2)
    curve = TradeOffCurve.of([(LaplaceEvent(0.36), 2)])
    for epsilon, delta in zip(curve.epsilons[::100], curve.deltas[::100], strict=True):
        assert delta == pytest.approx(peer.get_delta_for_epsilon(float(epsilon)), abs=1e-3)


def test_nothing_is_stated_without_privacy():
    for event in (NonPrivateEvent(), ViolationEvent("found")):
        assert TradeOffCurve.of(sampled(1.0, 0.1, 5).record(event)) is None
    with pytest.raises(UnsupportedEventError, match="no rule"):
        TradeOffCurve.of([(RandomStoppingEvent(GaussianEvent(1.0), 5.0), 1)])


def test_the_extremes_have_a_curve():
    assert TradeOffCurve.of([]).advantage == 0
    tiny = TradeOffCurve.of(sampled(1e6, 1e-6, 1))
    assert 0 <= tiny.advantage <= FLOOR
    assert tiny.gaussian_fit()[0] < 1e-6
    hopeless = TradeOffCurve.of(sampled(0.02, 0.5, 100))
    assert hopeless.advantage > 1 - 1e-9
    assert hopeless.gaussian_fit()[0] > 12
    assert hopeless.epsilon(1e-5) == math.inf


def test_rates_outside_of_the_unit_interval_are_refused(curves):
    for rate in (0.0, 1.0, -0.1, math.nan):
        with pytest.raises(ValueError, match="false_positive_rate"):
            curves[CASES[0]].true_positive_rate(rate)


def test_delta_at_zero_is_the_total_variation_of_a_gaussian():
    assert TradeOffCurve.of([(GaussianEvent(0.5), 1)]).advantage == gaussian_delta(2.0, 0.0)
