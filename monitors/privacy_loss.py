"""The privacy loss of one sampled Gaussian release, rounded pessimistically to a grid.

The loss of the data with one more example against the data without it is ``L(x) = log(1 - q + q exp((2 x - 1) / (2
sigma^2)))``, increasing in ``x``. With ``x`` from the mixture, ``L(x)`` is the loss for removing an example; with ``x``
from ``N(0, sigma^2)``, ``-L(x)`` is the loss for adding one. The mass between two grid points is split over both so
that the mass under either hypothesis is preserved ("connect the dots", Doroshenko et al. 2022). This is a
mean-preserving spread of the likelihood ratio, so the rounded pair dominates the true one and agrees with it in every
hockey-stick divergence at a grid point: the error is of second order in the step. Mass above the grid counts as an
infinite loss; mass below it is moved up to the lowest point.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class LossMasses:
    """A distribution of the privacy loss on the grid ``step * index``.

    Args:
        first: Index of the lowest grid point.
        masses: Probability of each grid point from ``first`` on, shape (points,).
        infinite: Probability of an infinite loss.
    """

    first: int
    masses: Floats
    infinite: float

    def log_moment(self, exponent: float, step: float) -> float:
        """Log of ``E[exp(exponent * loss)]`` over the finite losses."""
        with np.errstate(divide="ignore"):
            heights = np.log(self.masses) + exponent * step * (self.first + np.arange(self.masses.size))
        top = float(heights.max())
        return top + math.log(float(np.exp(heights - top).sum()))

    def tilted(self, exponent: float, step: float) -> Floats:
        """``masses * exp(exponent * loss)``, normalised; shape (points,)."""
        with np.errstate(divide="ignore"):
            heights = np.log(self.masses) + exponent * step * np.arange(self.masses.size)
        weights: Floats = np.exp(heights - heights.max())
        weights /= weights.sum()
        return weights

    def folded(self, exponent: float, step: float, size: int) -> Floats:
        """``tilted``, folded onto indices modulo ``size``; shape (size,)."""
        weights = self.tilted(exponent, step)
        start = self.first % size
        padded = np.zeros(-(-(start + weights.size) // size) * size)
        padded[start : start + weights.size] = weights
        folded: Floats = padded.reshape(-1, size).sum(axis=0)
        return folded


def loss_masses(rate: float, multiplier: float, step: float, tail: float) -> tuple[LossMasses, LossMasses]:
    """The rounded losses for removing and for adding one example.

    Args:
        rate: Poisson sampling rate, in (0, 1].
        multiplier: Noise standard deviation over sensitivity.
        step: Spacing of the grid.
        tail: Standard deviations kept on either side; mass beyond them is charged as described above.

    Returns:
        The loss for removal and the loss for addition.
    """
    bottom = loss_at(-tail, rate, multiplier)
    top = loss_at(tail + 1 / multiplier, rate, multiplier)
    first, last = math.floor(bottom / step), math.ceil(top / step)
    # an edge below log(1 - q) lies below every loss, so nothing is cut off there
    last = max(last, first + 1)
    edges = step * np.arange(first, last + 1)
    z = _place(edges, rate, multiplier)
    without, with_one = _cell_masses(z), _cell_masses(z - 1 / multiplier)
    mixture = (1 - rate) * without + rate * with_one
    growth = np.exp(np.minimum(edges[:-1], 700.0))  # an underestimate moves mass up, which is pessimistic
    spread = -math.expm1(-step)
    upper = np.clip((mixture[1:-1] - growth * without[1:-1]) / spread, 0.0, mixture[1:-1])
    removal = _collect(mixture, upper, first, rising=True)
    shrink = np.exp(np.minimum(-edges[1:], 700.0))
    upper = np.clip((without[1:-1] - shrink * mixture[1:-1]) / spread, 0.0, without[1:-1])
    addition = _collect(without, upper, -last, rising=False)
    return removal, addition


def split_cells(edges: Floats, here: Floats, there: Floats, first: int, step: float) -> LossMasses:
    """Round a loss of finite range to the grid points, preserving the mass under either hypothesis.

    Args:
        edges: Grid points from ``first`` on, shape (points,); all losses lie between the first and the last.
        here: Mass of each cell between neighbouring points under the hypothesis from which the loss is drawn, shape
            (points - 1,).
        there: Mass of each cell under the other hypothesis, shape (points - 1,).
        first: Index of the first grid point.
        step: Spacing of the grid.
    """
    growth = np.exp(np.minimum(edges[:-1], 700.0))  # an underestimate moves mass up, which is pessimistic
    upper = np.clip((here - growth * there) / -math.expm1(-step), 0.0, here)
    points = np.zeros(edges.size)
    points[1:] += upper
    points[:-1] += here - upper
    return LossMasses(first, points, 0.0)


def rounding_variance(rate: Floats, multiplier: Floats, step: float, tilt: float) -> Floats:
    """Variance that rounding to a grid of ``step`` adds to the loss, averaged with weights ``exp(tilt * loss)``.

    It raises the composition's ``log E[exp(tilt * loss)]`` by ``tilt (tilt + 1) / 2`` times its value, and epsilon by
    about ``(tilt + 1) / 2`` times its value. This estimate by quadrature guides the choice of a grid and enters no
    bound.

    Args:
        rate: Sampling rates, shape (n,).
        multiplier: Noise multipliers, shape (n,).
        step: Spacing of the grid.
        tilt: At least 0.

    Returns:
        Shape (n,).
    """
    last = 9.0 + (1.0 + tilt) / float(multiplier.min())
    nodes = np.linspace(-9.0, last, min(4000, int((last + 9.0) / 0.08)))
    loss = loss_at(nodes[None, :], rate[:, None], multiplier[:, None])
    # the density of the mixture is exp(loss) times that of the other hypothesis
    heights = (1.0 + tilt) * loss - 0.5 * nodes**2
    weights = np.exp(heights - heights.max(axis=1, keepdims=True))
    added: Floats = (weights * _spread(loss, step)).sum(axis=1) / weights.sum(axis=1)
    return added


def _spread(loss: Floats, step: float) -> Floats:
    below = loss - step * np.floor(loss / step)
    spread: Floats = below * (step - below)
    return spread


def loss_at(z: Floats | float, rate: Floats | float, multiplier: Floats | float) -> Floats:
    """Loss at ``x = multiplier * z``."""
    exponent = z / np.asarray(multiplier) - 0.5 / np.asarray(multiplier) ** 2
    with np.errstate(divide="ignore"):
        small = np.log1p(np.maximum(rate * np.expm1(np.minimum(exponent, 600.0)), -1.0))
    # without sampling, the loss is the exponent itself, however negative
    loss: Floats = np.where(np.asarray(rate) == 1, exponent, small + np.maximum(exponent - 600.0, 0.0))
    return loss


def _place(edges: Floats, rate: float, multiplier: float) -> Floats:
    """``z`` at which the loss equals each edge; minus infinity for edges below ``log(1 - q)``."""
    with np.errstate(divide="ignore", invalid="ignore"):
        inside = np.expm1(np.minimum(edges, 600.0)) / rate
        exponent = np.where(inside > -1, np.log1p(np.maximum(inside, -1.0)), -np.inf)
    exponent = edges if rate == 1 else exponent + np.maximum(edges - 600.0, 0.0)
    place: Floats = multiplier * exponent + 0.5 / multiplier
    return place


def _cell_masses(z: Floats) -> Floats:
    """Normal mass below ``z[0]``, between neighbours, and above ``z[-1]``, with differences in the nearer tail."""
    from scipy.special import ndtr

    outer = ndtr(-np.abs(z))
    low, high = z[:-1], z[1:]
    inner = np.abs(outer[1:] - outer[:-1])
    middle = np.where((low < 0) & (high > 0), 1.0 - outer[1:] - outer[:-1], inner)
    below = outer[0] if z[0] < 0 else 1.0 - outer[0]
    above = outer[-1] if z[-1] > 0 else 1.0 - outer[-1]
    return np.concatenate([[below], middle, [above]])


def _collect(cells: Floats, upper: Floats, first: int, *, rising: bool) -> LossMasses:
    """Assign the split cells to the grid points; ``rising``: whether the loss increases in the order of the cells."""
    inner = cells[1:-1]
    points = np.zeros(inner.size + 1)
    if rising:
        points[1:] += upper
        points[:-1] += inner - upper
        points[0] += cells[0]
        return LossMasses(first, points, float(cells[-1]))
    points[:-1] += upper
    points[1:] += inner - upper
    points[-1] += cells[-1]
    return LossMasses(first, points[::-1].copy(), float(cells[0]))
