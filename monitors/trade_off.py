"""The trade-off curve of a ledger: what an attacker can reach, and the Gaussian mechanism that comes closest.

The privacy profile ``delta(epsilon)`` and the trade-off curve ``f`` (the smallest false-negative rate of a test that
tells two neighbours apart, at each false-positive rate) state the same (Dong, Roth and Su 2022, proposition 6):

    f(a) = max over epsilon >= 0 of  max(0, 1 - delta(epsilon) - e^epsilon a,  e^-epsilon (1 - delta(epsilon) - a)).

``delta`` is here the larger one for removing and for adding an example, so ``f`` is symmetric and holds for both. It is
known as an upper bound at the points of a grid. The true profile is convex in ``e^epsilon``, so the lower hull of these
points is an upper bound too. The maximum over the points of the hull is a lower bound on ``f``, with straight pieces
between corners.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitors import checks
from monitors.gaussian import gaussian_delta, gaussian_epsilon
from monitors.loss_composition import ComposedLoss
from monitors.pld import PLDAccountant, composable
from monitors.rdp import RDPAccountant
from monitors.terms import Rows, Terms

Floats = NDArray[np.floating]

#: Smallest error rate, and smallest delta, at which a curve is evaluated.
FLOOR = 1e-10

#: Version of the JSON form of the privacy losses.
LOSS_FORMAT = "dpmodel-privacy-loss/1"

_POINTS = 2000
_FOCUS = (1e-2, 1e-5, 1e-9, 1e-3 * FLOOR)
_WIDTH = 0.5
#: Far above the largest epsilon that decides an error rate of at least ``FLOOR``.
_HIGHEST = -3.0 * math.log(FLOOR)
#: Precision of the accountant for a schedule of up to ``_MANY`` different releases, and for more.
_MANY, _PRECISIONS = 8, (1e-3, 1e-2)


@dataclass(frozen=True, eq=False)
class TradeOffCurve:
    """The trade-off curve of a ledger, from an upper bound on its privacy profile.

    Args:
        epsilons: Grid of epsilon, in equal steps from 0, shape (points,).
        deltas: Upper bounds on delta at these, convex in ``e^epsilon``, shape (points,).
        exact_mu: mu if the ledger is a Gaussian mechanism (steps without sampling), else None.

    Example:
        >>> from monitors import GaussianEvent, Ledger
        >>> curve = TradeOffCurve.of(Ledger().record(GaussianEvent(2.0), 4))
        >>> curve.gaussian_fit(), round(curve.advantage, 4), round(curve.true_positive_rate(0.01), 4)
        ((1.0, 0.0), 0.3829, 0.0924)

    References:
        Dong, Roth and Su 2022, "Gaussian differential privacy"; Gomez et al. 2025, "Gaussian DP for reporting
        differential privacy guarantees in machine learning" (arXiv 2503.10945).
    """

    epsilons: Floats
    deltas: Floats
    exact_mu: float | None = None

    @classmethod
    def of(cls, ledger: Rows) -> TradeOffCurve | None:
        """The curve of a ledger; None if something was released without privacy.

        Args:
            ledger: A ``Ledger``, or any ``(event, count)`` pairs.

        Raises:
            UnsupportedEventError: The ``pld`` accountant has no rule for an event.
        """
        rows = list(ledger)
        terms = composable(rows)
        if terms.unprotected:
            return None
        if terms.only_unsampled:
            return cls._of_gaussian(math.sqrt(terms.mu_squared))
        accountant = PLDAccountant(_PRECISIONS[terms.rates.size > _MANY])
        directions = list(zip(*accountant.compositions(rows, _FOCUS, _WIDTH, _HIGHEST), strict=True))
        if not directions:
            return cls._of_divergence(terms)
        # An error rate of at least FLOOR is decided by an epsilon of at most log(1 / FLOOR).
        top = max(min(curve.epsilon(_FOCUS[-1]) for curve in curves) for curves in directions)
        grid = np.linspace(0.0, min(max(top, 1e-3), -math.log(FLOOR)), _POINTS + 1)
        bounds = [np.min([_deltas(curve, grid) for curve in curves], axis=0) for curves in directions]
        return cls(grid, _lower_hull(grid, np.minimum(np.max(bounds, axis=0), 1.0)))

    @classmethod
    def _of_gaussian(cls, mu: float) -> TradeOffCurve:
        top = min(max(gaussian_epsilon(mu, FLOOR), 1e-3), -math.log(FLOOR)) if mu > 0 else 1e-3
        grid = np.linspace(0.0, top, _POINTS + 1)
        return cls(grid, np.array([gaussian_delta(mu, float(epsilon)) for epsilon in grid]), mu)

    @classmethod
    def _of_divergence(cls, terms: Terms) -> TradeOffCurve:
        """The curve if a Renyi bound alone shows that delta is at most ``FLOOR`` at epsilon 0, or if it is infinite."""
        log_delta = RDPAccountant().best_log_delta(terms, 0.0)[0]
        grid = np.linspace(0.0, 1e-3, _POINTS + 1)
        return cls(grid, np.full(grid.shape, math.exp(min(0.0, log_delta))))

    @property
    def advantage(self) -> float:
        """Largest true-positive rate minus false-positive rate of an attacker: delta at epsilon 0."""
        return float(self.deltas[0])

    @property
    def correct_guesses(self) -> float:
        """Largest probability to guess membership correctly from a prior of 50 %: ``(1 + advantage) / 2``."""
        return 0.5 * (1.0 + self.advantage)

    def true_positive_rate(self, false_positive_rate: float) -> float:
        """Largest true-positive rate at a false-positive rate, ``1 - f(rate)``.

        Args:
            false_positive_rate: Strictly between 0 and 1.
        """
        from scipy.special import ndtr, ndtri

        checks.open_unit(false_positive_rate=false_positive_rate)
        if self.exact_mu is not None:
            return float(ndtr(ndtri(false_positive_rate) + self.exact_mu))
        growth = np.exp(self.epsilons)
        rising = self.deltas + growth * false_positive_rate
        flat = 1.0 - (1.0 - self.deltas - false_positive_rate) / growth
        return float(min(1.0, rising.min(), flat.min()))

    def posterior(self, false_positive_rate: float) -> float:
        """Largest probability that a person whom an attacker calls a member is one, from a prior of 50 %.

        Example:
            >>> from monitors import GaussianEvent
            >>> round(TradeOffCurve.of([(GaussianEvent(1.0), 1)]).posterior(0.01), 3)
            0.902
        """
        reached = self.true_positive_rate(false_positive_rate)
        return reached / (reached + false_positive_rate)

    def epsilon(self, delta: float) -> float:
        """An upper bound on epsilon at ``delta``; infinite if it lies beyond the grid.

        Args:
            delta: From ``FLOOR`` to 1.
        """
        if self.exact_mu is not None:
            return gaussian_epsilon(self.exact_mu, delta) if self.exact_mu > 0 else 0.0
        checks.open_unit(delta=delta)
        if delta < self.deltas[-1] * (1 - 1e-9):
            return math.inf
        # The hull is straight in e^epsilon between two points.
        growth = np.interp(-delta, -self.deltas, np.exp(self.epsilons))
        return max(0.0, math.log(float(growth)))

    def gaussian_fit(self) -> tuple[float, float]:
        """The smallest mu whose Gaussian curve lies below this one, and the distance of the curves ("regret").

        For a sampled mechanism, only error rates from ``FLOOR`` on are compared: far beyond them, its curve is that of
        a Gaussian mechanism without sampling. The regret is the smallest shift of both error rates that moves the
        Gaussian curve onto or above this one (definition 3 of Gomez et al. 2025).

        Returns:
            mu, and the regret in [0, 1]. (inf, 1) if an attacker errs with a probability below ``FLOOR``.
        """
        from scipy.special import ndtr, ndtri

        if self.exact_mu is not None:
            return self.exact_mu, 0.0
        positives, hits = self._corners()
        if hits.size == 0:
            return math.inf, 1.0
        mu = max(0.0, float(np.max(ndtri(hits) - ndtri(positives))))
        places = np.linspace(mu / 2, -ndtri(FLOOR), 8001)
        below, missed = ndtr(-places), ndtr(places - mu)
        difference, mean = positives - (1 - hits), 0.5 * (positives + 1 - hits)
        order = np.argsort(difference)
        at = below - missed
        seen = at >= difference[order[0]]
        gaps = np.interp(at[seen], difference[order], mean[order]) - 0.5 * (below + missed)[seen]
        return mu, max(0.0, float(gaps.max()))

    def _corners(self) -> tuple[Floats, Floats]:
        """False- and true-positive rates of the corners of the curve above the diagonal, down to ``FLOOR``."""
        growth = np.exp(self.epsilons)
        middle = 0.5 * (1.0 - self.deltas[0])
        if middle < FLOOR:
            return np.zeros(0), np.zeros(0)
        positives = np.minimum.accumulate(-np.diff(self.deltas) / np.diff(growth))
        hits = self.deltas[:-1] + growth[:-1] * positives
        kept = (positives >= FLOOR) & (positives <= 1.0 - hits)
        ends = np.array([middle, FLOOR])
        return (
            np.concatenate([positives[kept], ends]),
            np.concatenate([hits[kept], [1.0 - middle, self.true_positive_rate(FLOOR)]]),
        )

    def false_negative_rates(self, false_positive_rates: Floats) -> Floats:
        """The curve ``f`` at each of ``false_positive_rates``, shape (n,)."""
        return np.array([1.0 - self.true_positive_rate(float(rate)) for rate in false_positive_rates])

    def losses(self) -> dict[str, Any]:
        """The curve as a distribution of the privacy loss on a grid, which dominates the ledger.

        The loss for adding an example has the same distribution. ``probabilities[k]`` belongs to the loss
        ``interval * (first + k)``; ``infinite`` is the probability of an infinite loss.
        """
        growth = np.exp(self.epsilons)
        slopes = np.append(np.diff(self.deltas) / np.diff(growth), 0.0)
        above = np.maximum(growth[1:] * np.diff(slopes), 0.0)
        below = above / growth[1:]
        infinite = float(self.deltas[-1])
        middle = max(0.0, 1.0 - infinite - float(above.sum() + below.sum()))
        return {
            "format": LOSS_FORMAT,
            "interval": float(self.epsilons[1]),
            "first": -int(above.size),
            "probabilities": [*below[::-1].tolist(), middle, *above.tolist()],
            "infinite": infinite,
        }


def _deltas(curve: ComposedLoss, epsilons: Floats) -> Floats:
    """Upper bounds on delta at ``epsilons``, shape (n,)."""
    mass = np.append(np.cumsum(curve.masses[::-1])[::-1], 0.0)
    with np.errstate(under="ignore"):
        discounted = np.append(np.cumsum((curve.masses * np.exp(-curve.losses))[::-1])[::-1], 0.0)
    first = np.searchsorted(curve.losses, epsilons, side="right")
    # the difference may lose digits; it is rounded up by more than that
    units = np.maximum(mass[first] - np.exp(epsilons) * discounted[first], 0.0) + 1e-14 * mass[first] + curve.extra
    with np.errstate(divide="ignore"):
        found: Floats = np.exp(np.minimum(np.log(units) + curve.log_scale, 0.0))
    return found


def _lower_hull(epsilons: Floats, deltas: Floats) -> Floats:
    """The largest function that is convex in ``e^epsilon``, symmetric, and at most ``deltas``, at each of ``epsilons``.

    The profile of a symmetric curve at ``-epsilon`` is ``1 - e^-epsilon (1 - delta(epsilon))``.
    """
    growth = np.exp(epsilons)
    x = np.concatenate([1.0 / growth[:0:-1], growth])
    y = np.concatenate([(1.0 - (1.0 - deltas) / growth)[:0:-1], deltas])
    hull: list[int] = []
    for place in range(x.size):
        while len(hull) > 1 and (y[hull[-1]] - y[hull[-2]]) * (x[place] - x[hull[-2]]) >= (y[place] - y[hull[-2]]) * (
            x[hull[-1]] - x[hull[-2]]
        ):
            hull.pop()
        hull.append(place)
    found: Floats = np.interp(growth, x[hull], y[hull])
    return found
