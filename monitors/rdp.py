"""The Renyi-DP accountant: curves add up over the releases, the best order gives epsilon."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monitors import checks
from monitors.accountant import ACCOUNTANTS, Accountant, Tracker
from monitors.conversion import CONVERSIONS
from monitors.errors import PrivacyWarning
from monitors.order_search import best_order
from monitors.renyi import total_curve
from monitors.sampled_gaussian import order_array
from monitors.terms import Rows, Terms, gather, merge_similar

Floats = NDArray[np.floating]
Objective = Callable[[Floats], Floats]

_GROUPS = 48  # multipliers put together while the order is searched; the figure itself uses each one
_NEGLIGIBLE = 700.0  # -log of a delta that is zero for every purpose
_NEAR_ONE = 1.0 + 1e-6
_FINALISTS = 3  # orders of the user's that are evaluated exactly after the search


@ACCOUNTANTS.register("rdp")
class RDPAccountant(Accountant):
    """Renyi differential privacy with the best known conversion.

    Guarantees: an upper bound up to the curve's own 1e-9; within 0.1 % of the best order there is when ``orders`` is
    left out, for any ledger.

    Args:
        orders: Orders to choose from, all above 1. Default: a search without a grid, which has no end to fall off.
        conversion: ``"improved"``, or ``"classic"`` to reproduce figures of MindArmour and of older papers.

    Example:
        >>> from monitors import GaussianEvent, Ledger, PoissonSampledEvent
        >>> ledger = Ledger().record(PoissonSampledEvent(256 / 60000, GaussianEvent(1.5)), count=2340)
        >>> round(RDPAccountant().epsilon(ledger, 1e-5), 3)
        0.628
        >>> round(RDPAccountant(conversion="classic").epsilon(ledger, 1e-5), 2)
        0.81

    References:
        Mironov 2017; Mironov, Talwar and Zhang 2019; Canonne, Kamath and Steinke 2020.
    """

    name = "rdp"

    def __init__(self, orders: ArrayLike | None = None, *, conversion: str = "improved") -> None:
        self.orders = None if orders is None else np.unique(order_array(orders))
        self.conversion = CONVERSIONS.create(conversion)

    def epsilon(self, ledger: Rows, delta: float) -> float:
        """Epsilon at ``delta``; see ``Accountant.epsilon``."""
        return self.epsilon_and_order(ledger, delta)[0]

    def epsilon_and_order(self, ledger: Rows, delta: float) -> tuple[float, float]:
        """Epsilon at ``delta`` and the order that gives it."""
        checks.open_unit(delta=delta)
        terms = gather(ledger)
        if terms.unprotected:
            return math.inf, math.inf
        value, order, at_end = self.best_epsilon(terms, delta)
        if at_end and 0 < value < math.inf:
            _warn_at_end(order)
        return max(0.0, value), order

    def delta(self, ledger: Rows, epsilon: float) -> float:
        """Delta at ``epsilon``; see ``Accountant.delta``."""
        checks.non_negative(epsilon=epsilon)
        terms = gather(ledger)
        if terms.unprotected:
            return 1.0
        value, order, at_end = self.best_log_delta(terms, epsilon)
        if at_end and -_NEGLIGIBLE < value < 0:
            _warn_at_end(order)
        return math.exp(min(0.0, value))

    def best_epsilon(self, terms: Terms, delta: float) -> tuple[float, float, bool]:
        """Epsilon (negative means 0), its order, and whether that order is the last one there is."""
        if math.log(delta) >= self._log_delta_anywhere(terms):
            return 0.0, 1.0, False
        return self._minimum(terms, lambda curve, orders: self.conversion.epsilon(curve, orders, delta))

    def best_log_delta(self, terms: Terms, epsilon: float) -> tuple[float, float, bool]:
        """Log of delta (positive means delta 1), its order, and whether that order is the last one there is."""
        value, order, at_end = self._minimum(
            terms, lambda curve, orders: self.conversion.log_delta(curve, orders, epsilon)
        )
        return min(value, self._log_delta_anywhere(terms)), order, at_end

    def tracker(self) -> Tracker:
        """A tracker that keeps the sum of the curves."""
        from monitors.rdp_tracker import RDPTracker

        return RDPTracker(self)

    def _log_delta_anywhere(self, terms: Terms) -> float:
        lowest = np.array([_NEAR_ONE]) if self.orders is None else self.orders[:1]
        anywhere: float = self.conversion.log_delta_anywhere(float(total_curve(terms, lowest)[0]))
        return anywhere

    def _minimum(self, terms: Terms, convert: Callable[[Floats, Floats], Floats]) -> tuple[float, float, bool]:
        """Smallest converted value, its order, and whether that order is at the end of the orders."""
        many = terms.rates.size > _GROUPS
        sketch = merge_similar(terms, _GROUPS) if many else terms

        def objective(orders: Floats) -> Floats:
            return convert(total_curve(sketch, orders), orders)

        if self.orders is None:
            order, at_end = best_order(objective)
            finalists = np.array([order])
        else:
            finalists = self.orders[np.sort(np.argsort(objective(self.orders))[:_FINALISTS])]
            at_end = False
        exact = convert(total_curve(terms, finalists), finalists)
        order = float(finalists[int(np.argmin(exact))])
        if self.orders is not None:
            at_end = self.orders.size > 1 and order in (self.orders[0], self.orders[-1])
        return float(exact.min()), order, at_end


def _warn_at_end(order: float) -> None:
    warnings.warn(
        f"the best Renyi order, {order:g}, is at the end of the orders; a wider range would give a smaller epsilon. "
        "The figure is a valid bound all the same. Leave `orders` out, or use the 'pld' accountant.",
        PrivacyWarning,
        stacklevel=4,
    )
