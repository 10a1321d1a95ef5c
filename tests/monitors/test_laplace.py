"""Laplace releases: exact figures, and composition with other releases."""

import importlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitors import (
    ComposedEvent,
    DisjointEvent,
    GaussianEvent,
    LaplaceEvent,
    Ledger,
    PLDAccountant,
    PoissonSampledEvent,
    RDPAccountant,
    RepeatedEvent,
    UnsupportedEventError,
    ZCDPAccountant,
    event_from_dict,
    renyi_curve,
    zcdp_rho,
)
from monitors.laplace import laplace_curve, laplace_losses

EPSILONS = st.floats(1e-6, 30.0)


def quadrature_curve(epsilon, order):
    """Renyi divergence by definition, over the three pieces on which the loss is linear."""
    from scipy.integrate import quad

    middle, _ = quad(lambda x: 0.5 * math.exp(-x + (order - 1) * (epsilon - 2 * x)), 0, epsilon, epsabs=0, epsrel=1e-12)
    ends = 0.5 * math.exp((order - 1) * epsilon) + 0.5 * math.exp(-epsilon - (order - 1) * epsilon)
    return math.log(middle + ends) / (order - 1)


@pytest.mark.parametrize("epsilon", [0.05, 0.4, 3.0])
@pytest.mark.parametrize("order", [1.3, 2.0, 9.5, 60.0])
def test_the_renyi_curve_is_that_of_the_definition(epsilon, order):
    assert laplace_curve(epsilon, np.array([order]))[0] == pytest.approx(quadrature_curve(epsilon, order), rel=1e-9)


@given(EPSILONS, st.floats(1.0001, 1e6))
def test_the_renyi_curve_lies_below_its_limits_and_below_exact_zcdp(epsilon, order):
    (value,) = laplace_curve(epsilon, np.array([order]))
    assert 0 <= value <= epsilon
    assert value <= order * zcdp_rho(LaplaceEvent(1 / epsilon)) * (1 + 1e-9)


@given(st.floats(1e-9, 1e-3))
def test_small_releases_are_not_lost_to_rounding(epsilon):
    assert laplace_curve(epsilon, np.array([2.0]))[0] == pytest.approx(epsilon**2, rel=1e-2)
    assert zcdp_rho(LaplaceEvent(1 / epsilon)) == pytest.approx(epsilon**2 / 2, rel=1e-2)


def test_exact_zcdp_is_the_divergence_of_order_one():
    near_one = laplace_curve(0.7, np.array([1 + 1e-7]))[0]
    assert zcdp_rho(LaplaceEvent(1 / 0.7)) == pytest.approx(near_one, rel=1e-5)


@given(st.floats(0.01, 8.0), st.floats(1e-8, 0.3))
@settings(deadline=None)
def test_one_release_has_the_closed_form_epsilon(epsilon, delta):
    """The hockey-stick divergence of one Laplace release is ``1 - exp((e - epsilon) / 2)``."""
    exact = max(0.0, epsilon + 2 * math.log1p(-delta))
    found = PLDAccountant().epsilon(Ledger().record(LaplaceEvent(1 / epsilon)), delta)
    assert exact - 1e-9 <= found <= exact + 0.01 * epsilon


@given(st.floats(0.01, 5.0), st.floats(1e-4, 0.5))
def test_rounding_keeps_the_mass_under_both_hypotheses(epsilon, step):
    losses = laplace_losses(epsilon, step)
    points = step * (losses.first + np.arange(losses.masses.size))
    assert losses.masses.min() >= 0
    assert losses.masses.sum() == pytest.approx(1.0, abs=1e-12)
    assert losses.masses @ np.exp(-points) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("multiplier", [1e-3, 1e-150, 1e-6, 1e6, 1e150])
@pytest.mark.sample(5)
def test_every_accountant_handles_extreme_releases(multiplier):
    ledger, pure = Ledger().record(LaplaceEvent(multiplier)), 1 / multiplier
    for accountant in (PLDAccountant(), RDPAccountant()):
        assert 0 <= accountant.epsilon(ledger, 1e-5) <= pure * (1 + 1e-9)
        exact = max(0.0, -math.expm1((2.0 - pure) / 2)) if pure > 2 else 0.0
        assert exact * (1 - 1e-9) - 1e-12 <= accountant.delta(ledger, 2.0) <= 1
    assert PLDAccountant().delta(ledger, 2.0) <= exact + 1e-3
    assert ZCDPAccountant().epsilon(ledger, 1e-5) >= 0


@pytest.mark.parametrize(("multiplier", "count"), [(1.0, 3), (10.0, 100), (50.0, 3000), (3.0, 20)])
def test_compositions_agree_with_dp_accounting(multiplier, count):
    dp_accounting = pytest.importorskip("dp_accounting")
    pld, rdp = importlib.import_module("dp_accounting.pld"), importlib.import_module("dp_accounting.rdp")
    ledger = Ledger().record(LaplaceEvent(multiplier), count)
    peer = pld.PLDAccountant(value_discretization_interval=1e-4)
    peer.compose(dp_accounting.LaplaceDpEvent(multiplier), count)
    assert PLDAccountant().epsilon(ledger, 1e-5) == pytest.approx(peer.get_epsilon(1e-5), rel=2e-3)
    coarse = rdp.RdpAccountant([1 + x / 10 for x in range(1, 2000)])
    coarse.compose(dp_accounting.LaplaceDpEvent(multiplier), count)
    assert RDPAccountant().epsilon(ledger, 1e-5) == pytest.approx(coarse.get_epsilon(1e-5), rel=2e-2)


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 0.9, 1.3])
def test_two_releases_are_never_charged_too_little(epsilon):
    """By definition, over a grid of the two noises, each with an atom at either end."""
    one, cells = 0.7, 2000
    place = (np.arange(cells) + 0.5) * one / cells
    mass = np.concatenate([[0.5], 0.5 * np.exp(-place) * one / cells, [0.5 * math.exp(-one)]])
    loss = np.concatenate([[one], one - 2 * place, [-one]])
    exact = (mass[:, None] * mass * -np.expm1(np.minimum(epsilon - loss[:, None] - loss, 0.0))).sum()
    found = PLDAccountant().delta(Ledger().record(LaplaceEvent(1 / one), 2), epsilon)
    assert exact * (1 - 1e-5) <= found <= exact * 1.02


def test_queries_and_training_compose_as_dp_accounting_says():
    dp_accounting = pytest.importorskip("dp_accounting")
    peer = importlib.import_module("dp_accounting.pld").PLDAccountant()
    step = PoissonSampledEvent(0.01, GaussianEvent(1.0))
    ledger = Ledger().record(LaplaceEvent(5.0), 10).record(step, 500).record(GaussianEvent(10.0), 3)
    peer.compose(dp_accounting.LaplaceDpEvent(5.0), 10)
    peer.compose(dp_accounting.PoissonSampledDpEvent(0.01, dp_accounting.GaussianDpEvent(1.0)), 500)
    peer.compose(dp_accounting.GaussianDpEvent(10.0), 3)
    assert PLDAccountant().epsilon(ledger, 1e-5) == pytest.approx(peer.get_epsilon(1e-5), rel=3e-3)
    assert PLDAccountant().delta(ledger, 2.0) == pytest.approx(peer.get_delta(2.0), rel=2e-2)


@pytest.mark.parametrize("accountant", [PLDAccountant(), RDPAccountant(), ZCDPAccountant()])
def test_repeated_and_composed_releases_cost_what_their_parts_cost(accountant):
    plain = Ledger().record(LaplaceEvent(4.0), 6).record(GaussianEvent(3.0), 2)
    both = ComposedEvent((RepeatedEvent(LaplaceEvent(4.0), 3), GaussianEvent(3.0)))
    nested = Ledger().record(both, 2)
    assert accountant.epsilon(nested, 1e-5) == pytest.approx(accountant.epsilon(plain, 1e-5), rel=1e-6)


def test_trackers_follow_a_ledger_with_queries():
    for accountant in (PLDAccountant(), RDPAccountant(), ZCDPAccountant()):
        tracker = accountant.tracker()
        tracker.add(GaussianEvent(5.0), 2)
        tracker.add(LaplaceEvent(4.0))
        ledger = Ledger().record(GaussianEvent(5.0), 2).record(LaplaceEvent(4.0))
        assert tracker.epsilon(1e-5) == pytest.approx(accountant.epsilon(ledger, 1e-5), rel=2e-2)


def test_several_numbers_at_once_are_dominated_by_one():
    """The worst move of a given L1 length is along one coordinate; checked in two dimensions by quadrature."""
    x = np.linspace(-14, 15, 2901)
    density = 0.5 * np.exp(-np.abs(x))
    whole = 1.0
    for share in (0.1, 0.3, 0.5):
        one, other = (0.5 * np.exp(-np.abs(x - d)) for d in (whole * share, whole * (1 - share)))
        for epsilon in (0.0, 0.2, 0.5, 0.9):
            gap = density[:, None] * density - math.exp(epsilon) * one[:, None] * other
            delta = gap.clip(0).sum() * (x[1] - x[0]) ** 2
            assert delta <= -math.expm1((epsilon - whole) / 2) + 1e-4


def test_an_event_without_a_rule_is_refused():
    sampled = Ledger().record(PoissonSampledEvent(0.1, LaplaceEvent(1.0)))
    parts = Ledger().record(DisjointEvent(0, LaplaceEvent(1.0)))
    for accountant in (PLDAccountant(), ZCDPAccountant()):
        with pytest.raises(UnsupportedEventError):
            accountant.epsilon(sampled, 1e-5)
    with pytest.raises(UnsupportedEventError, match="under Poisson sampling"):
        RDPAccountant().epsilon(sampled, 1e-5)
    with pytest.raises(UnsupportedEventError):
        PLDAccountant().epsilon(parts, 1e-5)
    assert RDPAccountant().epsilon(parts, 1e-5) <= 1.0
    assert PLDAccountant().epsilon(Ledger().record(PoissonSampledEvent(1.0, LaplaceEvent(1.0))), 1e-5) <= 1.0


@pytest.mark.parametrize("multiplier", [0, -1, math.nan, math.inf, "1"])
def test_a_multiplier_must_be_a_positive_number(multiplier):
    with pytest.raises((ValueError, TypeError)):
        LaplaceEvent(multiplier)


def test_a_ledger_file_keeps_the_event():
    assert event_from_dict(LaplaceEvent(3.0).to_dict()) == LaplaceEvent(3.0)
    assert renyi_curve(LaplaceEvent(1.0), np.array([2.0]))[0] == laplace_curve(1.0, np.array([2.0]))[0]
