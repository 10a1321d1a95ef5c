"""The exact cost of one Laplace release: Renyi curve, zCDP and privacy loss.

With noise of scale ``b``, numbers of L1 sensitivity ``d`` and ``epsilon = d / b``, the worst pair of neighbours moves
one number by all of ``d``: the hockey-stick divergence of a move ``(d1, d2, ...)`` never falls when two of its
components are merged into one coordinate. (Its derivative along that path is an integral over the boundary of the
region in which the privacy loss exceeds a threshold. The contributions cancel where the boundary runs inside both
components; the remaining ones, from beyond the ends of a component, all have the same sign.)
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from monitors.privacy_loss import LossMasses, split_cells

Floats = NDArray[np.floating]

_SERIES = 0.05  # below this, the second-order remainder of exp is computed from its series
_TERMS = 12
_LEAST_MASS = 1e-280  # least mass of the finite losses, so that their moments exist
_MOST_CELLS = 1 << 20  # most grid cells on either side of zero


def laplace_curve(epsilon: float, orders: Floats) -> Floats:
    """Renyi divergence of a Laplace release that is ``epsilon``-private, shape (orders,).

    ``log(A exp((a - 1) epsilon) + B exp(-a epsilon)) / (a - 1)`` with ``A = a / (2 a - 1)`` and ``B = 1 - A``.

    References:
        Mironov 2017, "Renyi Differential Privacy", proposition 6.

    Example:
        >>> laplace_curve(1.0, np.array([2.0, 100.0])).round(4)
        array([0.6191, 0.993 ])
    """
    large, small = orders / (2 * orders - 1), (orders - 1) / (2 * orders - 1)
    rising, falling = (orders - 1) * epsilon, -orders * epsilon
    with np.errstate(over="ignore"):
        # the first-order terms of both cancel exactly, so only the higher-order terms are summed
        excess = large * _above_linear(np.minimum(rising, 1.0)) + small * _above_linear(falling)
    log_moment = np.where(rising < 1.0, np.log1p(excess), np.logaddexp(np.log(large) + rising, np.log(small) + falling))
    curve: Floats = np.minimum(log_moment / (orders - 1), epsilon)
    return curve


def laplace_rho(epsilon: float) -> float:
    """The zCDP of a Laplace release, which is its Renyi divergence of order one: ``epsilon + exp(-epsilon) - 1``.

    References:
        Harrison and Manurangsi 2025, "Exact zCDP Characterizations for Fundamental Differentially Private Mechanisms".

    Example:
        >>> round(laplace_rho(1.0), 4)
        0.3679
    """
    return float(_above_linear(np.array([-epsilon]))[0])


def laplace_losses(epsilon: float, step: float) -> LossMasses:
    """The rounded privacy loss of a Laplace release, the same for adding and for removing an example.

    Half of the mass is at ``epsilon`` and ``exp(-epsilon) / 2`` of it at ``-epsilon``; in between, the loss is
    ``epsilon - 2 x`` with ``x`` exponential. The loss never exceeds ``epsilon``.

    Args:
        epsilon: Sensitivity over scale, positive.
        step: Spacing of the grid.
    """
    far = min(math.ceil(min(epsilon / step, 2.0 * _MOST_CELLS)), _MOST_CELLS)
    first, last = -far, far
    edges = step * np.arange(first, last + 1)
    # the noise, in units of its scale, at which the loss equals each edge: falls from epsilon to 0
    place = np.clip((epsilon - edges) / 2, 0.0, epsilon)
    width = place[:-1] - place[1:]
    here = 0.5 * np.exp(-place[1:]) * -np.expm1(-width)
    there = 0.5 * np.exp(place[:-1] - epsilon) * -np.expm1(-width)
    if far * step < epsilon:
        # Mass above the grid counts as an infinite loss; mass below it is moved up to its lowest point.
        inside = split_cells(edges, here, there, first, step)
        inside.masses[0] += max(0.5 * math.exp(-place[0]), _LEAST_MASS)
        return LossMasses(first, inside.masses, 1.0 - 0.5 * math.exp(-place[-1]))
    # the atoms lie in the first and the last cell
    here[0], there[0] = here[0] + 0.5 * math.exp(-epsilon), there[0] + 0.5
    here[-1], there[-1] = here[-1] + 0.5, there[-1] + 0.5 * math.exp(-epsilon)
    return split_cells(edges, here, there, first, step)


def _above_linear(x: Floats) -> Floats:
    """``exp(x) - 1 - x``, which is at least 0, without cancellation."""
    series, term = np.zeros(x.shape), np.ones(x.shape)
    near = np.clip(x, -_SERIES, _SERIES)
    for number in range(1, _TERMS):
        term = term * near / number
        series = series + (term if number > 1 else 0.0)
    value: Floats = np.where(np.abs(x) < _SERIES, series, np.expm1(x) - x)
    return value
