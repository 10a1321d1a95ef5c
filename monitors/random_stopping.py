"""The cost of publishing the best of a random number of runs (Papernot and Steinke 2022)."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from monitors.conversion import ImprovedConversion

Floats = NDArray[np.floating]
Curve = Callable[[Floats], Floats]

# the orders at which the second term of the bound is minimised; any choice is valid
_SECOND_ORDERS = 1.0 + np.geomspace(1e-3, 1e4, 200)


def random_stopping_curve(curve: Curve, expected_runs: float, distribution: str, orders: Floats) -> Floats:
    """Renyi curve of the best of K runs, if K is drawn from ``distribution`` and never revealed.

    Args:
        curve: Renyi curve of one run.
        expected_runs: Mean of K; above 1 for the truncated distributions.
        distribution: ``"geometric"`` (negative binomial of shape 1) or ``"logarithmic"`` (shape 0), both truncated to
            at least one run; or ``"poisson"``, under which there may be no run at all.
        orders: Shape (orders,), all above 1.

    Returns:
        Shape (orders,).

    References:
        Papernot and Steinke, "Hyperparameter tuning with Renyi differential privacy", 2022, theorems 2 and 6.

    Example:
        >>> random_stopping_curve(lambda a: 0.01 * a, 10.0, "geometric", np.array([8.0])).round(3)
        array([0.996])
    """
    if distribution == "poisson":
        return _poisson(curve, expected_runs, orders)
    shape = 1.0 if distribution == "geometric" else 0.0
    return _negative_binomial(curve, expected_runs, shape, orders)


def _negative_binomial(curve: Curve, expected_runs: float, shape: float, orders: Floats) -> Floats:
    """Theorem 2: ``rdp(a) + (1 + s) (1 - 1/b) rdp(b) + (1 + s) log(1/g) / b + log(E K) / (a - 1)`` for any ``b``."""
    success = 1 / expected_runs if shape == 1 else _logarithmic_parameter(expected_runs)
    second = (1 - 1 / _SECOND_ORDERS) * curve(_SECOND_ORDERS) - math.log(success) / _SECOND_ORDERS
    total: Floats = curve(orders) + (1 + shape) * second.min() + math.log(expected_runs) / (orders - 1)
    return total


def _logarithmic_parameter(expected_runs: float) -> float:
    """The ``g`` whose logarithmic distribution has mean ``(1/g - 1) / log(1/g)``, rounded towards the higher cost."""
    low, high = 1e-300, 1.0
    for _ in range(2000):
        middle = math.sqrt(low * high)
        if not low < middle < high:
            break
        mean = (1 / middle - 1) / math.log(1 / middle)
        low, high = (low, middle) if mean < expected_runs else (middle, high)
    return low


def _poisson(curve: Curve, expected_runs: float, orders: Floats) -> Floats:
    """Theorem 6, ``rdp(a) + m * delta(a) + log(m) / (a - 1)``, plus the probability ``exp(-m)`` of no run; ``m = E K``.

    ``delta(a)`` is taken at epsilon ``log(1 + 1 / (a - 1))``. The theorem bounds the outcomes that are runs. No run is
    also an outcome, equally likely with and without the example, and adds ``exp(-m)`` to ``exp((a - 1) rdp)``: a
    negligible amount for many expected runs, and most of the total for fewer than one.
    """
    spent = curve(_SECOND_ORDERS)
    conversion = ImprovedConversion()
    log_deltas = [
        min(0.0, float(conversion.log_delta(spent, _SECOND_ORDERS, math.log1p(1 / (order - 1))).min()))
        for order in orders
    ]
    runs = (orders - 1) * (curve(orders) + expected_runs * np.exp(log_deltas)) + math.log(expected_runs)
    total: Floats = np.logaddexp(runs, -expected_runs) / (orders - 1)
    return total
