"""The Renyi accountant: golden figures, the conversion, the order search, composition."""

import importlib
import math
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitors import (
    ComposedEvent,
    DisjointEvent,
    GaussianEvent,
    Ledger,
    NonPrivateEvent,
    PoissonSampledEvent,
    PrivacyEvent,
    PrivacyWarning,
    RDPAccountant,
    UnsupportedEventError,
    gaussian_epsilon,
    rdp_sampled_gaussian,
    renyi_curve,
    sampled_renyi_curve,
)

sampled = st.builds(PoissonSampledEvent, st.floats(1e-4, 0.5), st.builds(GaussianEvent, st.floats(0.4, 20)))
rows = st.lists(st.tuples(sampled, st.integers(1, 500)), min_size=1, max_size=4)


def ledger_of(pairs):
    ledger = Ledger()
    for event, count in pairs:
        ledger.record(event, count)
    return ledger


def poisson(rate, multiplier, steps):
    return Ledger().record(PoissonSampledEvent(rate, GaussianEvent(multiplier)), steps)


@pytest.mark.parametrize(
    ("ledger", "epsilon"),
    [(poisson(256 / 60000, 1.5, 2340), 0.628), (poisson(512 / 60000, 1.23, 4680), 2.579)],
)
def test_the_known_epsilons_at_delta_1e_5(ledger, epsilon):
    assert RDPAccountant().epsilon(ledger, 1e-5) == pytest.approx(epsilon, abs=5e-4)


def test_the_classic_conversion_reproduces_the_published_epsilon_of_three():
    ledger = poisson(512 / 60000, 1.23, 4680)
    assert RDPAccountant(conversion="classic").epsilon(ledger, 1e-5) == pytest.approx(3.0, abs=0.01)


@given(rows, st.floats(-10, -1).map(lambda power: 10.0**power))
@settings(max_examples=25, deadline=None)
def test_no_order_of_a_fine_grid_beats_the_search_by_a_thousandth(pairs, delta):
    ledger = ledger_of(pairs)
    grid = 1 + np.geomspace(1e-4, 1e4, 800)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PrivacyWarning)
        best = RDPAccountant(grid).epsilon(ledger, delta)
    assert RDPAccountant().epsilon(ledger, delta) <= best * 1.001 + 1e-12


@given(rows, st.floats(-10, -2).map(lambda power: 10.0**power))
@settings(max_examples=25, deadline=None)
def test_epsilon_to_delta_and_back_is_the_identity(pairs, delta):
    accountant, ledger = RDPAccountant(), ledger_of(pairs)
    epsilon = accountant.epsilon(ledger, delta)
    if epsilon > 0:
        assert accountant.delta(ledger, epsilon) == pytest.approx(delta, rel=1e-3)


@given(rows, st.randoms(use_true_random=False))
@settings(max_examples=20, deadline=None)
def test_the_order_of_composition_does_not_matter(pairs, random):
    shuffled = list(pairs)
    random.shuffle(shuffled)
    first = RDPAccountant().epsilon(ledger_of(pairs), 1e-5)
    assert RDPAccountant().epsilon(ledger_of(shuffled), 1e-5) == pytest.approx(first, rel=1e-5)


@given(st.floats(1e-4, 0.3), st.floats(0.5, 10), st.integers(1, 5000), st.floats(1e-8, 1e-3))
@settings(max_examples=30, deadline=None)
def test_epsilon_is_monotone_in_steps_multiplier_rate_and_delta(rate, multiplier, steps, delta):
    accountant = RDPAccountant()
    epsilon = accountant.epsilon(poisson(rate, multiplier, steps), delta)
    assert accountant.epsilon(poisson(rate, multiplier, steps + 1), delta) >= epsilon * (1 - 1e-6)
    assert accountant.epsilon(poisson(rate, multiplier * 1.01, steps), delta) <= epsilon * (1 + 1e-6)
    assert accountant.epsilon(poisson(rate * 1.01, multiplier, steps), delta) >= epsilon * (1 - 1e-6)
    assert accountant.epsilon(poisson(rate, multiplier, steps), delta * 1.01) <= epsilon * (1 + 1e-6)


def test_grouping_multipliers_affects_the_order_and_never_the_figure():
    multipliers = np.linspace(0.8, 2.0, 300)
    ledger = ledger_of([(PoissonSampledEvent(0.01, GaussianEvent(sigma)), 1) for sigma in multipliers])
    epsilon, order = RDPAccountant().epsilon_and_order(ledger, 1e-5)
    curve = rdp_sampled_gaussian(0.01, multipliers, order).sum()
    exact = curve + math.log1p(-1 / order) - (math.log(1e-5) + math.log(order)) / (order - 1)
    assert epsilon == pytest.approx(exact, rel=1e-12)


def test_gaussians_on_one_sample_are_composed_inside_the_sampling():
    pair = PoissonSampledEvent(0.01, ComposedEvent((GaussianEvent(1.0), GaussianEvent(2.0))))
    one = PoissonSampledEvent(0.01, GaussianEvent((1 + 1 / 4) ** -0.5))
    orders = np.array([1.5, 4.0, 30.0])
    np.testing.assert_allclose(renyi_curve(pair, orders), renyi_curve(one, orders), rtol=1e-12)


def test_a_partition_costs_its_largest_event_and_partitions_add_up():
    ledger = Ledger()
    for epoch in range(10):
        for multiplier in (3.0, 1.5, 2.0):
            ledger.record(DisjointEvent(epoch, GaussianEvent(multiplier)))
    alone = Ledger().record(GaussianEvent(1.5), 10)
    assert RDPAccountant().epsilon(ledger, 1e-5) == pytest.approx(RDPAccountant().epsilon(alone, 1e-5))


def test_a_partition_of_different_kinds_takes_the_largest_at_each_order():
    events = [PoissonSampledEvent(0.5, GaussianEvent(0.5)), GaussianEvent(1.0)]
    ledger = Ledger()
    for event in events:
        ledger.record(DisjointEvent(0, event))
    order = 4.0
    largest = max(renyi_curve(event, np.array([order]))[0] for event in events)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PrivacyWarning)
        found = RDPAccountant(order, conversion="classic").epsilon(ledger, 1e-5)
    assert found == pytest.approx(largest + math.log(1e5) / 3)


@pytest.mark.parametrize("event", [NonPrivateEvent(), PoissonSampledEvent(0.01, NonPrivateEvent())])
def test_a_release_without_privacy_is_infinite(event):
    ledger = Ledger().record(GaussianEvent(10.0)).record(event)
    assert RDPAccountant().epsilon(ledger, 1e-5) == math.inf
    assert RDPAccountant().delta(ledger, 10.0) == 1.0


def test_an_empty_ledger_costs_nothing():
    assert RDPAccountant().epsilon(Ledger(), 1e-5) == 0
    assert RDPAccountant().delta(Ledger(), 0.0) == 0


@pytest.mark.parametrize(
    "ledger",
    [poisson(1e-7, 0.05, 1), poisson(1e-7, 100.0, 10**6), poisson(1.0, 0.05, 10**6), poisson(0.999, 100.0, 1)],
)
@pytest.mark.parametrize("delta", [1e-300, 1e-5, 0.999])
def test_the_ends_of_the_supported_ranges_give_finite_figures(ledger, delta):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PrivacyWarning)
        epsilon = RDPAccountant().epsilon(ledger, delta)
    assert math.isfinite(epsilon)
    assert epsilon >= 0


def test_the_bound_is_never_below_the_exact_gaussian():
    for multiplier in (0.05, 0.5, 5.0, 50.0):
        for delta in (1e-12, 1e-5, 0.1):
            assert RDPAccountant().epsilon(poisson(1.0, multiplier, 1), delta) >= gaussian_epsilon(
                1 / multiplier, delta
            )


def test_given_orders_are_used():
    ledger = poisson(0.01, 1.0, 1000)
    assert RDPAccountant([2.0, 8.0, 64.0]).epsilon_and_order(ledger, 1e-5)[1] == 8.0


def test_a_best_order_at_the_end_of_the_given_orders_causes_a_warning():
    with pytest.warns(PrivacyWarning, match="at the end of the orders"):
        RDPAccountant([2.0, 3.0]).epsilon(poisson(0.01, 1.0, 1000), 1e-5)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1.0, math.nan, 1.5])
def test_delta_out_of_range_is_refused(delta):
    with pytest.raises(ValueError, match="delta"):
        RDPAccountant().epsilon(poisson(0.01, 1.0, 10), delta)


@pytest.mark.parametrize("epsilon", [-1.0, math.nan, math.inf])
def test_epsilon_out_of_range_is_refused(epsilon):
    with pytest.raises(ValueError, match="epsilon"):
        RDPAccountant().delta(poisson(0.01, 1.0, 10), epsilon)


def test_an_unknown_conversion_names_the_known_ones():
    with pytest.raises(ValueError, match="did you mean 'classic'"):
        RDPAccountant(conversion="clasic")


@dataclass(frozen=True)
class LaplaceLikeEvent(PrivacyEvent):
    scale: float = 1.0


def test_an_unknown_event_is_refused_with_the_way_to_register_a_rule():
    with pytest.raises(UnsupportedEventError, match=r"LaplaceLikeEvent.*renyi_curve\.register"):
        RDPAccountant().epsilon(Ledger().record(LaplaceLikeEvent()), 1e-5)
    with pytest.raises(UnsupportedEventError, match=r"LaplaceLikeEvent.*sampled_renyi_curve\.register"):
        RDPAccountant().epsilon(Ledger().record(PoissonSampledEvent(0.1, LaplaceLikeEvent())), 1e-5)
    both = ComposedEvent((GaussianEvent(1.0), LaplaceLikeEvent()))
    with pytest.raises(UnsupportedEventError, match="compose inside the sampling"):
        RDPAccountant().epsilon(Ledger().record(PoissonSampledEvent(0.1, both)), 1e-5)


@dataclass(frozen=True)
class ThirdPartyEvent(PrivacyEvent):
    cost: float


@renyi_curve.register
def _(event: ThirdPartyEvent, orders: np.ndarray) -> np.ndarray:
    return event.cost * orders


@sampled_renyi_curve.register
def _(event: ThirdPartyEvent, sampling_rate: float, orders: np.ndarray) -> np.ndarray:
    return sampling_rate * event.cost * orders


def test_custom_rules_are_registered_for_an_event_alone_and_under_sampling():
    event = ThirdPartyEvent(0.02)
    ledger = Ledger().record(event, 3).record(PoissonSampledEvent(0.5, event), 2)
    same = Ledger().record(GaussianEvent((2 * 0.08) ** -0.5))
    assert RDPAccountant().epsilon(ledger, 1e-5) == pytest.approx(RDPAccountant().epsilon(same, 1e-5), rel=1e-6)


@dataclass(frozen=True)
class OverflowingEvent(PrivacyEvent):
    """An event whose rule overflows at high orders, as a careless custom rule may."""

    sigma: float


@renyi_curve.register
def _(event: OverflowingEvent, orders: np.ndarray) -> np.ndarray:
    return np.where(orders < 20, orders / (2 * event.sigma**2), np.nan)


@pytest.mark.parametrize("wrapped", [lambda event: event, lambda event: DisjointEvent(0, event)], ids=["alone", "part"])
def test_a_rule_that_returns_nan_proves_no_privacy(wrapped):
    event = wrapped(OverflowingEvent(3.0))
    exact = RDPAccountant().epsilon(Ledger().record(GaussianEvent(3.0)), 1e-5)
    tracker = RDPAccountant().tracker()
    tracker.add(event)
    assert RDPAccountant().epsilon(Ledger().record(event), 1e-5) >= exact
    assert tracker.epsilon(1e-5) >= exact
    assert RDPAccountant().delta(Ledger().record(event), 0.1) > 0


def test_other_libraries_agree_where_they_are_correct():
    rdp = importlib.import_module("dp_accounting.rdp")
    import dp_accounting

    orders = [2, 4, 8, 16, 32]
    peer = rdp.RdpAccountant(orders)
    peer.compose(dp_accounting.PoissonSampledDpEvent(0.01, dp_accounting.GaussianDpEvent(1.3)), 500)
    ours = RDPAccountant(orders).epsilon(poisson(0.01, 1.3, 500), 1e-5)
    assert ours == pytest.approx(peer.get_epsilon(1e-5), rel=1e-7)


def test_opacus_agrees_where_it_is_correct():
    analysis = importlib.import_module("opacus.accountants.analysis.rdp")
    orders = [1.5, 2.0, 8.3, 32.0]
    theirs = analysis.compute_rdp(q=0.01, noise_multiplier=1.0, steps=1, orders=orders)
    np.testing.assert_allclose(rdp_sampled_gaussian(0.01, 1.0, orders), theirs, rtol=1e-6)
