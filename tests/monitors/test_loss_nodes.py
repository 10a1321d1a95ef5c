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


@pytest.mark.parametrize(("low", "same_rate"), [(0.6, True), (3.0, True), (1.0, False)])
def test_merging_never_lowers_epsilon_and_hardly_raises_it(monkeypatch, low, same_rate):
    draw = np.random.default_rng(int(10 * low))
    multipliers = low * draw.uniform(1.0, 1.5, 300)
    rates = np.full(300, 0.02) if same_rate else draw.choice([0.01, 0.02, 0.03], 300)
    merged, separate = merged_and_separate(monkeypatch, ledger_of(rates, multipliers))
    assert separate * (1 - 1e-4) <= merged <= separate * (1 + TOLERANCE)  # both are bounds within 1e-4


def test_rates_and_multipliers_that_both_differ_are_merged_upwards(monkeypatch):
    draw = np.random.default_rng(1)
    ledger = ledger_of(draw.uniform(0.01, 0.011, 200), draw.uniform(1.0, 1.1, 200))
    merged, separate = merged_and_separate(monkeypatch, ledger)
    assert separate * (1 - 1e-4) <= merged <= separate * 1.01


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


@pytest.mark.parametrize("epsilon", [0.3, 1.0, 2.0])
def test_merged_releases_dominate_those_between_the_same_nodes(monkeypatch, epsilon):
    from monitors.loss_composition import compose_losses
    from monitors.privacy_loss import loss_masses

    rates, multipliers = np.full(200, 0.05), np.random.default_rng(2).uniform(1.0, 1.3, 200)
    found = []
    for most in (10**9, 20):
        monkeypatch.setattr(loss_nodes, "MOST_LOTTERIES", most)
        nodes = place_nodes(rates, multipliers, np.ones(200))
        losses = [loss_masses(q, s, 1e-2, 9.0)[0] for q, s in zip(nodes.rates, nodes.multipliers, strict=True)]
        found.append(compose_losses(nodes, losses, 1e-2, 5.0, 1e-12, 0.0).log_delta(epsilon))
    separate, merged = found
    assert separate - 1e-9 <= merged <= separate + 0.01


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
