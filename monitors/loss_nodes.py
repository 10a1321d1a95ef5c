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

Very many different releases have few lotteries that differ noticeably, so similar ones are merged. Between two nodes,
only the NUMBER of releases at the worse node counts, and more of them are never better. That number is a sum of
independent coins of odds ``1 - q_i``. A binomial whose ``q`` is the geometric mean of the ``q_i`` dominates it: for two
coins, the mean keeps the odds of no worse release and raises those of two, as ``(1 - q)^2 >= (1 - q_1) (1 -
q_2)``; repeated, that leads to the mean of all (Pledger and Proschan 1971). This error is of second order too, in the
width of a bin of odds.
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
MOST_LOTTERIES = 2048  # if there are more, similar ones are merged
_LEVELS = 8, 64  # bins of similar odds between two nodes: the error of the odds is below 1 / (2 levels^2)


@dataclass(frozen=True)
class LossNodes:
    """The nodes, and for each release a lottery over four of them.

    Args:
        rates: Sampling rate of each node, shape (nodes,).
        multipliers: Noise multiplier of each node, shape (nodes,).
        corners: Node indices, shape (releases, 4).
        odds: Probabilities, shape (releases, 4); rows sum to 1.
        counts: Number of repetitions of each release, shape (releases,). One row may stand for many similar releases.
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
    if counts.size > MOST_LOTTERIES:
        cell = rate_low * sigma_nodes.size + sigma_low
        cell, rate_odds, sigma_odds, counts = _merged(cell, rate_odds, sigma_odds, counts)
        rate_low, sigma_low = np.divmod(cell, sigma_nodes.size)
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


def _merged(
    cell: Indices, rate_odds: Floats, sigma_odds: Floats, counts: Floats
) -> tuple[Indices, Floats, Floats, Floats]:
    """Merge similar lotteries of one cell: cell, odds of the higher rate and multiplier, and count of each group.

    The result dominates the given lotteries (see the module). If both odds differ within a group, its rates are raised
    to the highest of them: the releases must be alike in all but one of the two coins.
    """
    levels = min(_LEVELS[1], max(_LEVELS[0], MOST_LOTTERIES // np.unique(cell).size))
    # In bins of square roots, the error, variance / (2 mean), is about the same. Odds of zero have a separate bin.
    bins = [np.ceil(np.sqrt(odds) * levels).astype(np.int64) for odds in (1 - rate_odds, sigma_odds)]
    _, member = np.unique((cell * (levels + 1) + bins[0]) * (levels + 1) + bins[1], return_inverse=True)
    size = int(member.max()) + 1
    order = np.argsort(member, kind="stable")
    starts = np.searchsorted(member[order], np.arange(size))
    totals = np.add.reduceat(counts[order], starts)

    def spread(values: Floats) -> tuple[Floats, Floats]:
        return np.minimum.reduceat(values[order], starts), np.maximum.reduceat(values[order], starts)

    def geometric(values: Floats, ends: tuple[Floats, Floats]) -> Floats:
        with np.errstate(divide="ignore"):
            mean = np.exp(np.add.reduceat((counts * np.log(values))[order], starts) / totals)
        # a mean of equal values is that value, to the last digit
        found: Floats = np.where(ends[0] == ends[1], ends[0], np.clip(mean * (1 - 1e-12), *ends))
        return found

    rate_ends, sigma_ends = spread(rate_odds), spread(sigma_odds)
    alike = sigma_ends[0] == sigma_ends[1]
    rates = np.where(alike, 1 - geometric(1 - rate_odds, spread(1 - rate_odds)), rate_ends[1])
    return cell[order][starts], np.maximum(rates, rate_ends[0]), geometric(sigma_odds, sigma_ends), totals


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
