"""The privacy-loss accountant: certified, tight, and correct where the exact figure is known."""

import importlib
import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from monitors import (
    ComposedEvent,
    DisjointEvent,
    GaussianEvent,
    Ledger,
    NonPrivateEvent,
    PLDAccountant,
    PoissonSampledEvent,
    PrivacyEvent,
    RDPAccountant,
    UnsupportedEventError,
    gaussian_delta,
    gaussian_epsilon,
)
from monitors.loss_composition import compose_losses
from monitors.loss_nodes import place_nodes
from monitors.privacy_loss import loss_masses
from monitors.schedules import decayed


def poisson(rate, multiplier, steps):
    return Ledger().record(PoissonSampledEvent(rate, GaussianEvent(multiplier)), steps)


def one_release_delta(rate, multiplier, epsilon):
    """Both directions of a single sampled Gaussian in closed form, from the exact Gaussian curve."""
    removal = rate * gaussian_delta(1 / multiplier, math.log1p(math.expm1(epsilon) / rate))
    share = 1 - math.exp(epsilon) * (1 - rate)
    if share <= 0:
        return removal
    inner = epsilon + math.log(rate) - math.log(share)
    return max(removal, share * gaussian_delta(1 / multiplier, inner)) if inner >= 0 else removal


@pytest.mark.parametrize(
    ("ledger", "epsilon"),
    [(poisson(256 / 60000, 1.5, 2340), 0.5654), (poisson(512 / 60000, 1.23, 4680), 2.361)],
)
def test_the_known_epsilons_at_delta_1e_5(ledger, epsilon):
    assert epsilon - 1e-3 < PLDAccountant().epsilon(ledger, 1e-5) < epsilon * 1.001 + 5e-4


@given(st.floats(1e-4, 0.95), st.floats(0.3, 20), st.floats(-9, -2).map(lambda power: 10.0**power))
@settings(max_examples=30, deadline=None)
def test_a_single_release_is_bounded_from_above_and_within_half_a_per_cent(rate, multiplier, delta):
    epsilon = PLDAccountant().epsilon(poisson(rate, multiplier, 1), delta)
    assert one_release_delta(rate, multiplier, epsilon) <= delta * (1 + 1e-9)
    if epsilon > 1e-3:  # below this, the grid spacing matters
        assert one_release_delta(rate, multiplier, epsilon * 0.995) > delta


@pytest.mark.parametrize("steps", [1, 30, 3000])
def test_a_rate_near_one_gives_the_exact_gaussian(steps):
    multiplier = 2.0 * math.sqrt(steps)
    found = PLDAccountant().epsilon(poisson(1 - 1e-12, multiplier, steps), 1e-6)
    exact = gaussian_epsilon(0.5, 1e-6)
    assert exact * (1 - 1e-6) <= found <= exact * 1.002


@pytest.mark.parametrize(("mu", "delta"), [(298.8, 1e-5), (300.5, 1e-5), (103.1, 1e-30), (39.34, 1e-80)])
def test_masses_that_underflow_are_charged(mu, delta):
    hardly_anything = PoissonSampledEvent(1e-9, GaussianEvent(50.0))
    ledger = Ledger().record(GaussianEvent(1 / mu)).record(hardly_anything)
    assert PLDAccountant().epsilon(ledger, delta) >= gaussian_epsilon(mu, delta)


def test_losses_that_overflow_prove_no_privacy():
    nodes = place_nodes(np.array([0.5]), np.array([1e-3]), np.array([1.0]))
    removal, _ = loss_masses(0.5, 1e-3, 2000.0, 5.0)
    composed = compose_losses(nodes, [removal], 2000.0, 1.0, 1e-10, 1.0)
    assert composed.log_delta(1.0) >= math.log(0.5)


def test_unsampled_releases_are_exact():
    ledger = Ledger().record(GaussianEvent(8.0), 2).record(ComposedEvent((GaussianEvent(3.0), GaussianEvent(4.0))))
    mu = math.sqrt(2 / 64 + 1 / 9 + 1 / 16)
    assert PLDAccountant().epsilon(ledger, 1e-5) == gaussian_epsilon(mu, 1e-5)
    assert PLDAccountant().delta(ledger, 1.0) == gaussian_delta(mu, 1.0)


@pytest.mark.parametrize(
    ("rate", "multiplier", "steps", "delta"),
    [(0.0043, 1.5, 2340, 1e-5), (1e-3, 0.6, 3000, 1e-6), (0.3, 5.0, 50, 1e-8)],
)
def test_dp_accounting_agrees_within_its_stated_error(rate, multiplier, steps, delta):
    pld = importlib.import_module("dp_accounting.pld")
    import dp_accounting

    peer = pld.PLDAccountant(value_discretization_interval=1e-4)
    peer.compose(dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(multiplier)), steps)
    ours = PLDAccountant().epsilon(poisson(rate, multiplier, steps), delta)
    assert ours == pytest.approx(peer.get_epsilon(delta), rel=2e-3)


def test_opacus_prv_agrees_within_its_stated_error():
    accountants = importlib.import_module("opacus.accountants")
    peer = accountants.PRVAccountant()
    peer.history = [(1.1, 0.01, 600)]
    theirs = peer.get_epsilon(1e-5, eps_error=0.005, delta_error=1e-9)
    ours = PLDAccountant().epsilon(poisson(0.01, 1.1, 600), 1e-5)
    assert theirs - 0.01 <= ours <= theirs + 1e-3


@given(st.floats(1e-3, 0.2), st.floats(0.5, 4), st.integers(1, 800), st.floats(1e-9, 1e-3))
@settings(max_examples=20, deadline=None)
@pytest.mark.slow
def test_it_lies_below_the_renyi_bound_and_is_monotone(rate, multiplier, steps, delta):
    accountant = PLDAccountant()
    epsilon = accountant.epsilon(poisson(rate, multiplier, steps), delta)
    assert epsilon <= RDPAccountant().epsilon(poisson(rate, multiplier, steps), delta) * (1 + 1e-9)
    rounding = 1.002
    assert accountant.epsilon(poisson(rate, multiplier, 2 * steps), delta) * rounding >= epsilon
    assert accountant.epsilon(poisson(rate, multiplier * 1.1, steps), delta) <= epsilon * rounding
    assert accountant.epsilon(poisson(rate, multiplier, steps), min(delta * 2, 0.5)) <= epsilon * rounding


@pytest.mark.slow
@given(st.floats(1e-3, 0.2), st.floats(0.6, 4), st.integers(1, 800), st.floats(1e-9, 1e-3))
@settings(max_examples=15, deadline=None)
def test_epsilon_to_delta_and_back(rate, multiplier, steps, delta):
    accountant, ledger = PLDAccountant(), poisson(rate, multiplier, steps)
    epsilon = accountant.epsilon(ledger, delta)
    if epsilon > 1e-3:
        assert accountant.delta(ledger, epsilon) == pytest.approx(delta, rel=0.05)


@pytest.mark.slow
def test_interpolating_many_multipliers_costs_less_than_a_thousandth():
    schedule = decayed(2.0, "Exp", 5e-3)
    ledger = Ledger()
    for step in range(120):
        ledger.record(PoissonSampledEvent(0.02, GaussianEvent(schedule(step))))
    found = PLDAccountant().epsilon(ledger, 1e-5)
    import monitors.loss_nodes as nodes

    exact_limit, nodes._EXACT = nodes._EXACT, 10**6
    try:
        exact = PLDAccountant(1e-4).epsilon(ledger, 1e-5)
    finally:
        nodes._EXACT = exact_limit
    assert exact * (1 - 1e-6) <= found <= exact * 1.002


def test_the_order_of_composition_does_not_matter():
    events = [PoissonSampledEvent(0.01 * k, GaussianEvent(1 + 0.1 * k)) for k in range(1, 9)] + [GaussianEvent(8.0)]
    forth, back = Ledger(), Ledger()
    for event in events:
        forth.record(event, 20)
    for event in reversed(events):
        back.record(event, 20)
    assert PLDAccountant().epsilon(forth, 1e-5) == pytest.approx(PLDAccountant().epsilon(back, 1e-5), rel=1e-6)


def test_many_rates_are_interpolated_upwards():
    rates = np.linspace(0.005, 0.02, 200)
    ledger, doubled = Ledger(), Ledger()
    for rate in rates:
        ledger.record(PoissonSampledEvent(rate, GaussianEvent(1.0)))
        doubled.record(PoissonSampledEvent(rate, GaussianEvent(1.0)), 2)
    found = PLDAccountant().epsilon(ledger, 1e-5)
    assert PLDAccountant().epsilon(poisson(float(np.mean(rates)), 1.0, 200), 1e-5) < found
    assert found < PLDAccountant().epsilon(doubled, 1e-5)
    assert found < RDPAccountant().epsilon(ledger, 1e-5)


@given(
    st.floats(1e-3, 1.0),
    st.floats(0.2, 5),
    st.floats(1e-3, 0.3),
    st.floats(-3, 6),
)
@settings(max_examples=40, deadline=None)
def test_rounded_losses_dominate_the_true_ones_in_both_directions(rate, multiplier, step, epsilon):
    for losses, direction in zip(loss_masses(rate, multiplier, step, 8.5), ("remove", "add"), strict=True):
        points = step * (losses.first + np.arange(losses.masses.size))
        rounded = losses.infinite + float(losses.masses @ np.maximum(0, -np.expm1(epsilon - points)))
        # by definition, the mean over the first distribution of the positive part of 1 - exp(epsilon - loss)
        x = np.linspace(-12, 12 + 1 / multiplier, 40001)
        without = np.exp(-0.5 * x**2) / math.sqrt(2 * math.pi)
        mixture = (1 - rate) * without + rate * np.exp(-0.5 * (x - 1 / multiplier) ** 2) / math.sqrt(2 * math.pi)
        first, second = (mixture, without) if direction == "remove" else (without, mixture)
        true = float(np.maximum(first - math.exp(epsilon) * second, 0).sum() * (x[1] - x[0]))
        assert rounded >= true - 2e-6
        assert losses.masses.min() >= 0
        assert losses.masses.sum() + losses.infinite == pytest.approx(1.0, abs=1e-9)


@given(st.floats(0.06, 3), st.floats(1.0001, 1.3), st.floats(0, 1), st.floats(1e-3, 1), st.floats(0, 5))
@settings(max_examples=60, deadline=None)
def test_the_lottery_between_two_nodes_dominates_releases_in_between(low, ratio, share, rate, deviations):
    multipliers = np.append(np.geomspace(low, low * ratio, 40), low * (1 + share * (ratio - 1)))
    nodes = place_nodes(np.full(41, rate), multipliers, np.ones(41), 1e9)
    if nodes.rates.size != 2:
        return
    mu = 1 / multipliers[-1]
    epsilon = mu * (mu / 2 + deviations)
    lottery = sum(
        odds * gaussian_delta(1 / nodes.multipliers[corner], epsilon)
        for odds, corner in zip(nodes.odds[-1], nodes.corners[-1], strict=True)
        if odds > 0
    )
    assert lottery >= gaussian_delta(mu, epsilon) * (1 - 1e-9)


def test_a_partition_is_charged_as_its_worst_event():
    ledger = Ledger()
    for rate, multiplier in ((0.1, 2.0), (0.2, 1.0)):
        ledger.record(DisjointEvent(0, PoissonSampledEvent(rate, GaussianEvent(multiplier))))
    assert PLDAccountant().epsilon(ledger, 1e-5) == pytest.approx(PLDAccountant().epsilon(poisson(0.2, 1.0, 1), 1e-5))


@pytest.mark.parametrize(
    "ledger",
    [poisson(1e-7, 0.05, 1), poisson(1e-6, 1.5, 10**6), poisson(0.5, 0.05, 10), poisson(0.999, 100.0, 1)],
)
@pytest.mark.parametrize("delta", [1e-12, 1e-5, 0.5])
def test_the_ends_of_the_supported_ranges_give_finite_figures(ledger, delta):
    assert math.isfinite(PLDAccountant().epsilon(ledger, delta))


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 1.0, 50.0])
def test_delta_lies_in_the_unit_interval_and_falls_with_epsilon(epsilon):
    accountant, ledger = PLDAccountant(), poisson(0.02, 0.8, 200)
    delta = accountant.delta(ledger, epsilon)
    assert 0 <= delta <= 1
    assert accountant.delta(ledger, epsilon + 0.5) <= delta


def test_a_release_without_privacy_costs_infinity_and_an_empty_ledger_zero():
    assert PLDAccountant().epsilon(Ledger().record(NonPrivateEvent()), 1e-5) == math.inf
    assert PLDAccountant().delta(Ledger().record(NonPrivateEvent()), 1.0) == 1.0
    assert PLDAccountant().epsilon(Ledger(), 1e-5) == 0.0


@dataclass(frozen=True)
class NoGaussianEvent(PrivacyEvent):
    pass


def test_an_unknown_event_is_refused_with_the_remedy():
    with pytest.raises(UnsupportedEventError, match=r"NoGaussianEvent.*'rdp'.*gaussian_terms\.register"):
        PLDAccountant().epsilon(Ledger().record(NoGaussianEvent()), 1e-5)


@pytest.mark.parametrize("precision", [0.0, -1.0, math.nan, 0.2])
def test_an_invalid_precision_is_refused(precision):
    with pytest.raises(ValueError, match="precision"):
        PLDAccountant(precision)


@pytest.mark.parametrize(("precision", "coarse"), [(1e-3, 1e-2), (0.05, 0.05)])
def test_a_coarse_accountant_has_the_same_type_and_is_never_more_precise(precision, coarse):
    class Own(PLDAccountant):
        pass

    accountant = Own(precision)
    assert type(accountant.coarse()) is Own
    assert accountant.coarse().precision == coarse
    assert accountant.precision == precision


@settings(max_examples=15, deadline=None)
@example(rate=1e-3, multiplier=1.0, steps=1)
@given(rate=st.floats(1e-3, 0.5), multiplier=st.floats(0.5, 5.0), steps=st.integers(1, 1000))
def test_a_coarse_epsilon_is_at_least_the_precise_one_and_hardly_larger(rate, multiplier, steps):
    accountant = PLDAccountant()
    precise, coarse = (one.epsilon(poisson(rate, multiplier, steps), 1e-5) for one in (accountant, accountant.coarse()))
    # Both are bounds slightly above the exact figure, so they may differ by the precision of the first. The epsilon of
    # one step at a small rate is near zero, where a coarse grid adds 0.07 and only the start of a search depends on it.
    assert precise * (1 - accountant.precision) - 1e-6 <= coarse <= precise * 1.1 + 0.1
