"""Merged lotteries dominate the ledger that they stand for, and cost hardly more."""

import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import monitors.loss_nodes as loss_nodes
from monitors import GaussianEvent, Ledger, PLDAccountant, PoissonSampledEvent
from monitors.loss_nodes import place_nodes

#: Merging may raise epsilon by this relative amount.
TOLERANCE = 5e-4


def ledger_of(rates, multipliers):
    ledger = Ledger()
    for rate, multiplier in zip(rates, multipliers, strict=True):
        ledger.record(PoissonSampledEvent(float(rate), GaussianEvent(float(multiplier))))
    return ledger


def merged_and_separate(monkeypatch, ledger, delta=1e-5):
    figures = []
    for most in (len(ledger) // 3, 10**9):
        monkeypatch.setattr(loss_nodes, "MOST_LOTTERIES", most)
        monkeypatch.setattr("monitors.loss_grid.MOST_LOTTERIES", most)
        figures.append(PLDAccountant(1e-4).epsilon(ledger, delta))
    return figures


def certified_lower_bound(ledger, delta=1e-5, interval=3e-4):
    """An epsilon that the composition certainly has: dp-accounting rounds every privacy loss down."""
    peer = importlib.import_module("dp_accounting.pld.privacy_loss_distribution")
    parts = [
        peer.from_gaussian_mechanism(
            event.event.noise_multiplier,
            sampling_prob=event.sampling_rate,
            pessimistic_estimate=False,
            value_discretization_interval=interval,
            use_connect_dots=False,
        ).self_compose(count)
        for event, count in ledger
    ]
    while len(parts) > 1:
        pairs = [parts[index : index + 2] for index in range(0, len(parts), 2)]
        parts = [pair[0].compose(pair[1]) if len(pair) == 2 else pair[0] for pair in pairs]
    return parts[0].get_epsilon_for_delta(delta)


# Both figures are upper bounds, computed on different grids to a relative precision of 1e-4. So the merged one may lie
# below the separate one; what it must not do is to lie below the truth, for which a lower bound is compared, and with
# equal grids below the separate one (see the test of dominance).


@pytest.mark.parametrize(("low", "same_rate"), [(0.6, True), (3.0, True), (1.0, False)])
@pytest.mark.slow
def test_merging_hardly_changes_epsilon(monkeypatch, low, same_rate):
    draw = np.random.default_rng(int(10 * low))
    multipliers = low * draw.uniform(1.0, 1.5, 120)
    rates = np.full(120, 0.02) if same_rate else draw.choice([0.01, 0.02, 0.03], 120)
    merged, separate = merged_and_separate(monkeypatch, ledger_of(rates, multipliers))
    assert abs(merged / separate - 1) <= TOLERANCE


@pytest.mark.parametrize("alike", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_a_merged_epsilon_is_never_below_what_the_composition_certainly_has(monkeypatch, alike):
    draw = np.random.default_rng(3)
    multipliers = draw.uniform(1.0, 1.1, 30)
    ledger = ledger_of(np.full(30, 0.05) if alike else draw.uniform(0.05, 0.055, 30), multipliers)
    assert certified_lower_bound(ledger) <= merged_and_separate(monkeypatch, ledger)[0]


@pytest.mark.slow
def test_rates_and_multipliers_that_both_differ_are_merged_upwards(monkeypatch):
    draw = np.random.default_rng(1)
    ledger = ledger_of(draw.uniform(0.01, 0.011, 100), draw.uniform(1.0, 1.1, 100))
    merged, separate = merged_and_separate(monkeypatch, ledger)
    assert separate * (1 - TOLERANCE) <= merged <= separate * 1.01


@pytest.mark.slow
def test_a_merged_epsilon_falls_with_delta_and_agrees_with_dp_accounting(monkeypatch):
    dp_accounting = importlib.import_module("dp_accounting")
    pld = importlib.import_module("dp_accounting.pld")
    multipliers = np.linspace(0.9, 1.2, 40)
    ledger = ledger_of(np.full(40, 0.03), multipliers)
    peer = pld.PLDAccountant(value_discretization_interval=1e-4)
    for multiplier in multipliers:
        peer.compose(dp_accounting.PoissonSampledDpEvent(0.03, dp_accounting.GaussianDpEvent(float(multiplier))))
    figures = [merged_and_separate(monkeypatch, ledger, delta)[0] for delta in (1e-7, 1e-5, 1e-3)]
    assert figures == sorted(figures, reverse=True)
    assert peer.get_epsilon(1e-5) * (1 - 1e-3) <= figures[1] <= peer.get_epsilon(1e-5) * (1 + 2e-3)


@given(st.lists(st.floats(1e-6, 1.0), min_size=2, max_size=12), st.integers(0, 12))
@settings(max_examples=100, deadline=None)
def test_a_binomial_of_the_geometric_mean_has_at_least_as_many_successes(misses, successes):
    def at_least(odds):
        counts = np.ones(1)
        for miss in odds:
            counts = np.convolve(counts, [miss, 1 - miss])
        return counts[successes:].sum()

    mean = float(np.exp(np.mean(np.log(misses))))
    assert at_least([mean] * len(misses)) >= at_least(misses) - 1e-12


@pytest.mark.parametrize("direction", [0, 1], ids=["removal", "addition"])
@pytest.mark.parametrize("differing", ["multipliers", "rates", "both"])
def test_merged_releases_dominate_those_between_the_same_nodes(monkeypatch, differing, direction):
    from monitors.loss_composition import compose_losses
    from monitors.privacy_loss import loss_masses

    draw = np.random.default_rng(2)
    rates = np.full(200, 0.05) if differing == "multipliers" else draw.uniform(0.05, 0.06, 200)
    multipliers = np.full(200, 1.1) if differing == "rates" else draw.uniform(1.0, 1.3, 200)
    counts = draw.integers(1, 4, 200).astype(float)
    found = []
    for most in (10**9, 20):
        monkeypatch.setattr(loss_nodes, "MOST_LOTTERIES", most)
        nodes = place_nodes(rates, multipliers, counts)
        losses = [loss_masses(q, s, 1e-2, 9.0)[direction] for q, s in zip(nodes.rates, nodes.multipliers, strict=True)]
        found.append((nodes.counts.size, compose_losses(nodes, losses, 1e-2, 4.0, 1e-12, 0.0)))
    (many, separate), (few, merged) = found
    assert few < many
    for epsilon in (0.3, 1.0, 2.0, 4.0):
        # the grid is the same: only the rounding of floating-point numbers is allowed for
        assert separate.log_delta(epsilon) - 1e-9 <= merged.log_delta(epsilon) <= separate.log_delta(epsilon) + 0.2


def test_very_many_releases_become_few_lotteries_and_none_is_lost():
    multipliers = np.linspace(1.0, 4.0, 100_000)
    nodes = place_nodes(np.full(100_000, 0.01), multipliers, np.ones(100_000))
    assert nodes.counts.size <= 2 * loss_nodes.MOST_LOTTERIES
    assert nodes.counts.sum() == 100_000
    assert np.allclose(nodes.odds.sum(axis=1), 1.0)


def test_the_lowest_frequencies_by_definition_are_those_of_the_fast_transform():
    from monitors.loss_composition import _Transform
    from monitors.privacy_loss import loss_masses

    removal, _ = loss_masses(0.01, 1.2, 1e-3, 8.0)
    size = 1 << 15
    fast = np.fft.rfft(removal.folded(5.0, 1e-3, size))[:40]
    assert np.abs(_Transform(5.0, 1e-3, size)(removal, 40) - fast).max() < 1e-13
