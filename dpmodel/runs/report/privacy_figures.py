"""Figures of a ledger beyond one epsilon: the curve for other conversions, and what an attacker can reach."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from monitors.errors import UnsupportedEventError
from monitors.neighbours import group_epsilon
from monitors.pld import PLDAccountant
from monitors.renyi import total_curve
from monitors.terms import gather
from monitors.trade_off import FLOOR, TradeOffCurve
from monitors.zcdp import ZCDPAccountant

if TYPE_CHECKING:
    from monitors.ledger import Ledger

#: Orders of the Renyi curve on the card.
ORDERS = (1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 16.0, 20.0, 24.0, 32.0, 48.0, 64.0, 96.0, 128.0, 256.0)

#: Deltas of the profile.
DELTAS = tuple(10.0**-power for power in range(3, 11))

#: False-positive rates at which the power of an attacker is stated.
RATES = (0.001, 0.01, 0.1)

#: Epsilon beyond which the profile is not continued: each point takes seconds, and none means anything.
_HOPELESS = 1e4

#: In place of a figure of a training without a guarantee.
NO_GUARANTEE = "no guarantee"


def no_figures() -> tuple[dict[str, Any], dict[str, Any]]:
    """The sections ``curve`` and ``attacker`` of a training without a guarantee."""
    curve = dict.fromkeys(("rdp", "rho", "profile", "mu", "regret"), NO_GUARANTEE)
    attacker = dict.fromkeys(("true_positive_rates", "posteriors", "advantage", "correct_guesses"), NO_GUARANTEE)
    return curve, attacker


def privacy_curve(ledger: Ledger) -> TradeOffCurve | str:
    """The trade-off curve, or why there is none."""
    try:
        return TradeOffCurve.of(ledger) or NO_GUARANTEE
    except UnsupportedEventError as error:
        return f"no statement: {error}"


def curve_figures(ledger: Ledger, curve: TradeOffCurve | str) -> dict[str, Any]:
    """The section ``curve`` of the card, as plain JSON values.

    Args:
        ledger: What was released; the guarantee holds.
        curve: Its trade-off curve.
    """
    found: dict[str, Any] = {"rdp": _renyi(ledger), "rho": _rho(ledger)}
    if isinstance(curve, str):
        return {**found, **dict.fromkeys(("profile", "mu", "regret"), curve)}
    mu, regret = curve.gaussian_fit()
    return {**found, "profile": _profile(ledger, curve), "mu": _plain(mu), "regret": regret, "smallest_rate": FLOOR}


def attacker_figures(curve: TradeOffCurve | str) -> dict[str, Any]:
    """The section ``attacker`` of the card, as plain JSON values."""
    if isinstance(curve, str):
        return dict.fromkeys(no_figures()[1], curve)
    return {
        "true_positive_rates": [[rate, curve.true_positive_rate(rate)] for rate in RATES],
        "posteriors": [[rate, curve.posterior(rate)] for rate in RATES],
        "advantage": curve.advantage,
        "correct_guesses": curve.correct_guesses,
    }


def person_epsilon(ledger: Ledger, delta: float, contributions: int) -> float | str:
    """Epsilon for a person with that many examples, or why there is none; infinity is ``"inf"``."""
    try:
        return _plain(group_epsilon(ledger, delta, contributions))
    except UnsupportedEventError as error:
        return f"no statement: {error}"


def _profile(ledger: Ledger, curve: TradeOffCurve) -> list[list[float | str]]:
    """Epsilon at each of ``DELTAS``, by the accountant where it lies beyond the curve."""
    found: list[tuple[float, float]] = []
    for delta in DELTAS:
        epsilon = curve.epsilon(delta)
        if math.isinf(epsilon) and (not found or found[-1][1] < _HOPELESS):
            epsilon = PLDAccountant().epsilon(ledger, delta)
        found.append((delta, epsilon))
    return [[delta, _plain(epsilon)] for delta, epsilon in found]


def _renyi(ledger: Ledger) -> dict[str, list[float | str]] | str:
    try:
        values = total_curve(gather(ledger), np.array(ORDERS))
    except UnsupportedEventError as error:
        return f"no statement: {error}"
    return {"orders": list(ORDERS), "values": [_plain(float(value)) for value in values]}


def _rho(ledger: Ledger) -> float | str:
    try:
        return _plain(ZCDPAccountant().rho(ledger))
    except UnsupportedEventError:
        return "not zCDP with a useful rho: batches are sampled, or an event has no rule"


def _plain(value: float) -> float | str:
    return "inf" if math.isinf(value) else float(value)
