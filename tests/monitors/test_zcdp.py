"""The zCDP accountant accepts releases of all the data and refuses sampled ones."""

import math
from dataclasses import dataclass

import pytest

from monitors import (
    ComposedEvent,
    DisjointEvent,
    GaussianEvent,
    Ledger,
    NonPrivateEvent,
    PoissonSampledEvent,
    PrivacyEvent,
    UnsupportedEventError,
    ZCDPAccountant,
    zcdp_rho,
)


def shuffled(epochs, multipliers):
    ledger = Ledger()
    for epoch in range(epochs):
        for multiplier in multipliers:
            ledger.record(DisjointEvent(epoch, GaussianEvent(multiplier)))
    return ledger


def test_ten_shuffled_epochs_cost_as_much_as_ten_gaussians_of_the_smallest_multiplier():
    assert ZCDPAccountant().epsilon(shuffled(10, (2.0, 1.5, 1.7)), 1e-5) == pytest.approx(10.67, abs=5e-3)


def test_epsilon_to_delta_and_back_is_the_identity():
    accountant, ledger = ZCDPAccountant(), Ledger().record(GaussianEvent(3.0), 7)
    assert accountant.delta(ledger, accountant.epsilon(ledger, 1e-6)) == pytest.approx(1e-6, rel=1e-6)


def test_rho_adds_up():
    ledger = Ledger().record(ComposedEvent((GaussianEvent(1.0), GaussianEvent(2.0))), 2)
    assert ZCDPAccountant().rho(ledger) == pytest.approx(2 * (0.5 + 0.125))


def test_sampled_events_are_refused_with_the_remedy():
    ledger = Ledger().record(PoissonSampledEvent(0.01, GaussianEvent(1.0)))
    with pytest.raises(UnsupportedEventError, match=r"PoissonSampledEvent of rate 0\.01.*'rdp' or 'pld'"):
        ZCDPAccountant().epsilon(ledger, 1e-5)


def test_a_rate_of_one_means_no_sampling():
    assert ZCDPAccountant().rho(Ledger().record(PoissonSampledEvent(1.0, GaussianEvent(1.0)))) == 0.5


def test_a_release_without_privacy_is_infinite():
    assert ZCDPAccountant().epsilon(Ledger().record(NonPrivateEvent()), 1e-5) == math.inf
    assert ZCDPAccountant().delta(Ledger().record(NonPrivateEvent()), 1.0) == 1.0


@dataclass(frozen=True)
class RhoEvent(PrivacyEvent):
    rho: float


@zcdp_rho.register
def _(event: RhoEvent) -> float:
    return event.rho


def test_a_custom_rho_is_registered():
    ledger = Ledger().record(RhoEvent(0.02), 3).record(DisjointEvent(0, RhoEvent(0.01))).record(GaussianEvent(5.0))
    accountant = ZCDPAccountant()
    assert accountant.rho(ledger) == pytest.approx(0.06 + 0.01 + 0.02)
    assert accountant.delta(ledger, accountant.epsilon(ledger, 1e-5)) == pytest.approx(1e-5, rel=1e-3)


@dataclass(frozen=True)
class NamelessEvent(PrivacyEvent):
    pass


def test_an_unknown_event_is_refused_by_name():
    with pytest.raises(UnsupportedEventError, match="NamelessEvent"):
        ZCDPAccountant().epsilon(Ledger().record(NamelessEvent()), 1e-5)
