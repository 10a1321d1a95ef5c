"""What a ledger allows an attacker, against the closed forms of the Gaussian mechanism."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from dpmodel.attack import Limit
from monitors import GaussianEvent, Ledger, NonPrivateEvent, PoissonSampledEvent, RDPAccountant
from monitors.errors import UnsupportedEventError
from monitors.trade_off import TradeOffCurve


def of(*multipliers, hops=1):
    return Limit.of([Ledger().record(GaussianEvent(multiplier)) for multiplier in multipliers], hops)


@settings(max_examples=8, deadline=None)
@given(st.floats(0.3, 10.0), st.floats(1e-4, 0.9), st.sampled_from([1, 2]))
def test_a_gaussian_mechanism_allows_what_two_normal_distributions_do(multiplier, rate, hops):
    mu = hops / multiplier
    assert of(multiplier, hops=hops).true_positive_rate(rate) == pytest.approx(norm.sf(norm.isf(rate) - mu), rel=1e-6)


@pytest.mark.parametrize("multiplier", [0.5, 1.0, 4.0])
def test_the_area_is_rounded_up_a_little(multiplier):
    exact = norm.cdf(1 / multiplier / np.sqrt(2))
    assert exact <= of(multiplier).area <= exact + 0.006


def test_of_several_ledgers_the_largest_limit_counts():
    assert of(1.0, 2.0).true_positive_rate(0.01) == of(1.0).true_positive_rate(0.01)
    assert len(of(1.0, 1.0).curves) == 1


def test_a_ledger_without_guarantee_limits_nothing():
    limit = Limit.of([Ledger().record(GaussianEvent(1.0)), Ledger().record(NonPrivateEvent())])
    assert not limit.exists
    assert (limit.true_positive_rate(0.01), limit.area) == (1.0, 1.0)


def test_nothing_released_allows_guessing_alone():
    limit = Limit.of([Ledger()])
    assert limit.true_positive_rate(0.01) == pytest.approx(0.01)
    assert limit.area == pytest.approx(0.5, abs=0.006)


def test_an_event_without_losses_is_limited_by_its_renyi_curve(monkeypatch):
    ledger = Ledger().record(PoissonSampledEvent(0.1, GaussianEvent(1.5)), 50)
    tight = Limit.of([ledger])

    def unsupported(rows):
        raise UnsupportedEventError("no rule")

    monkeypatch.setattr(TradeOffCurve, "of", unsupported)
    loose = Limit.of([ledger])
    for rate in (0.001, 0.01, 0.3):
        best = min(np.exp(e) * rate + RDPAccountant().delta(ledger, float(e)) for e in np.linspace(0, 6, 25))
        assert tight.true_positive_rate(rate) <= loose.true_positive_rate(rate) <= best * 1.2
