"""Certified interpolation between multipliers and rates, so that a few sampled Gaussians represent thousands.

A release of multiplier ``s`` between nodes ``a < s < b`` is replaced by a public lottery between the release at ``a``
and the one at ``b``. The lottery dominates the release if the hockey-stick divergence at every epsilon is convex in the
coordinate in which the odds are linear:

* It is convex in ``t = sigma^k`` if ``k + 1 >= 1 / (4 sigma^2)``. For the Gaussian mechanism, ``d delta / d mu =
  phi(z)`` with ``z = mu / 2 - epsilon / mu``, so ``delta`` is convex in ``t`` if ``mu'' / mu'^2 >= z z' = mu / 4 -
  epsilon^2 / mu^3``; the left side is ``(k + 1) / mu`` and the right side at most ``mu / 4``. Poisson sampling
  preserves convexity: in either direction, its divergence is a multiple of the Gaussian's at a different epsilon, and
  neither the factor nor that epsilon depends on sigma.
* It is convex in the rate ``q``: one of the two distributions is linear in it, and the divergence is jointly convex.

The error is of second order in the spacing of the nodes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Indices = NDArray[np.int64]

_DISTANCE, _COARSEST = 0.02, 0.04  # relative spacing of nodes at multiplier 1 (grows with its square), and its maximum
_RATE_DISTANCE = 0.03
_MOST_NODES = 400
_EXACT = 24  # up to this many distinct values, each value is a node


@dataclass(frozen=True)
class LossNodes:
    """The nodes, and for each release a lottery over four of them.

    Args:
        rates: Sampling rate of each node, shape (nodes,).
        multipliers: Noise multiplier of each node, shape (nodes,).
        corners: Node indices, shape (releases, 4).
        odds: Probabilities, shape (releases, 4); rows sum to 1.
        counts: Number of repetitions of each release, shape (releases,).
    """

    rates: Floats
    multipliers: Floats
    corners: Indices
    odds: Floats
    counts: Floats

    @property
    def node_counts(self) -> Floats:
        """Expected number of releases at each node, shape (nodes,)."""
        weights = (self.odds * self.counts[:, None]).ravel()
        totals: Floats = np.bincount(self.corners.ravel(), weights, self.rates.size).astype(np.float64)
        return totals

    def with_others(self, counts: Sequence[int]) -> LossNodes:
        """These nodes plus a separate node for each of the given releases, with rate and multiplier NaN."""
        if not counts:
            return self
        number, unknown = self.rates.size, np.full(len(counts), np.nan)
        return LossNodes(
            np.append(self.rates, unknown),
            np.append(self.multipliers, unknown),
            np.vstack([self.corners.reshape(-1, 4), np.repeat(number + np.arange(len(counts))[:, None], 4, axis=1)]),
            np.vstack([self.odds.reshape(-1, 4), np.tile([1.0, 0.0, 0.0, 0.0], (len(counts), 1))]),
            np.append(self.counts, np.asarray(counts, dtype=np.float64)),
        )


def place_nodes(rates: Floats, multipliers: Floats, counts: Floats, distance: float = 1.0) -> LossNodes:
    """Choose nodes for releases of the given rates, multipliers and counts, all of shape (releases,).

    Args:
        rates: In (0, 1).
        multipliers: Positive.
        counts: At least 1.
        distance: Spacing of the nodes, relative to one that suits most schedules.

    Example:
        >>> nodes = place_nodes(np.full(500, 0.01), np.linspace(1.0, 1.1, 500), np.ones(500))
        >>> nodes.rates.size < 10, bool(np.allclose(nodes.odds.sum(axis=1), 1.0))
        (True, True)
    """
    rate_nodes = _rate_nodes(rates, distance)
    sigma_nodes = _multiplier_nodes(multipliers, distance)
    rate_low, rate_odds = _linear_odds(rates, rate_nodes)
    sigma_low, sigma_odds = _power_odds(multipliers, sigma_nodes)
    rate_high = np.minimum(rate_low + 1, rate_nodes.size - 1)
    sigma_high = np.minimum(sigma_low + 1, sigma_nodes.size - 1)
    pairs = [(rate_low, sigma_low), (rate_low, sigma_high), (rate_high, sigma_low), (rate_high, sigma_high)]
    corners = np.stack([rate * sigma_nodes.size + sigma for rate, sigma in pairs], axis=1)
    split = [(1 - rate_odds) * (1 - sigma_odds), (1 - rate_odds) * sigma_odds]
    split += [rate_odds * (1 - sigma_odds), rate_odds * sigma_odds]
    odds = np.stack(split, axis=1)
    # corners of probability zero need no node: a constant schedule has a single node
    corners = np.where(odds > 0, corners, corners[np.arange(odds.shape[0]), odds.argmax(axis=1)][:, None])
    used, renumbered = np.unique(corners, return_inverse=True)
    node_rates, node_multipliers = rate_nodes[used // sigma_nodes.size], sigma_nodes[used % sigma_nodes.size]
    return LossNodes(node_rates, node_multipliers, renumbered.reshape(corners.shape), odds, counts)


def _rate_nodes(rates: Floats, distance: float) -> Floats:
    distinct = np.unique(rates)
    if distinct.size <= _EXACT:
        return distinct
    number = 2 + int(math.log(distinct[-1] / distinct[0]) / (distance * _RATE_DISTANCE))
    return np.geomspace(distinct[0], distinct[-1], min(number, _MOST_NODES))


def _multiplier_nodes(multipliers: Floats, distance: float) -> Floats:
    distinct = np.unique(multipliers)
    if distinct.size <= _EXACT:
        return distinct
    low, high = float(distinct[0]), float(distinct[-1])
    for widening in distance * 2.0 ** np.arange(40):
        nodes = [low]
        while nodes[-1] < high and len(nodes) < _MOST_NODES:
            nodes.append(nodes[-1] * (1 + widening * min(_DISTANCE * nodes[-1] ** 2, _COARSEST)))
        if nodes[-1] >= high:
            break
    nodes[-1] = high
    return np.array(nodes)


def _linear_odds(values: Floats, nodes: Floats) -> tuple[Indices, Floats]:
    """The node below each value, and the odds of the node above it."""
    low = np.clip(np.searchsorted(nodes, values, side="right") - 1, 0, nodes.size - 1)
    high = np.minimum(low + 1, nodes.size - 1)
    width = nodes[high] - nodes[low]
    odds = np.divide(values - nodes[low], width, out=np.zeros(values.shape), where=width > 0)
    return low.astype(np.int64), np.clip(odds, 0.0, 1.0)


def _power_odds(values: Floats, nodes: Floats) -> tuple[Indices, Floats]:
    """Like ``_linear_odds``, but linear in ``sigma^k`` with the ``k`` that the smaller node requires."""
    low, _ = _linear_odds(values, nodes)
    high = np.minimum(low + 1, nodes.size - 1)
    below, above = nodes[low], nodes[high]
    power = np.maximum(1.0, np.ceil(0.25 / below**2 - 1.0))
    width = np.expm1(power * np.log(above / below))
    odds = np.expm1(power * np.log(values / below))
    odds = np.divide(odds, width, out=np.zeros(values.shape), where=width > 0)
    # shift the odds slightly towards the node with less noise, so that rounding is never optimistic
    return low, np.clip(odds * (1 - 1e-13), 0.0, 1.0) if nodes.size > 1 else odds
