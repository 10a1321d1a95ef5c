"""The resolution of nodes and grid for a given precision of the figure; these estimates enter no bound."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from monitors.loss_composition import MOST_POINTS
from monitors.loss_nodes import MOST_LOTTERIES, LossNodes, place_nodes
from monitors.privacy_loss import loss_at, rounding_variance
from monitors.sampled_gaussian import log_moment_excess
from monitors.terms import Terms

Floats = NDArray[np.floating]

_REACH = 10.0  # standard deviations that the node grids span, approximately
_SIXTH = 6.0  # a loss uniformly distributed between two grid points gains step^2 / 6 of variance on average
_MOST_MASSES = 1 << 24  # most masses in all node grids together


@dataclass(frozen=True)
class Question:
    """The point on the privacy curve that is to be evaluated, as estimated by Renyi bounds.

    Args:
        epsilon: Approximate epsilon, positive.
        delta: Approximate delta.
        order: The best Renyi order at that point.
        width: Factor on the estimated grid step.
    """

    epsilon: float
    delta: float
    order: float
    width: float = 1.0

    @property
    def tilt(self) -> float:
        """Exponent that shifts the composed loss to the region that decides delta."""
        return min(max(self.order - 1.0, 1e-4), 1e4)


def choose_nodes(terms: Terms, question: Question, precision: float) -> LossNodes:
    """Nodes spaced so closely that their lotteries raise epsilon by a relative error of about ``precision``.

    All unsampled releases together form one additional node.
    """
    sample, distance = _sample(terms), 1.0
    nodes = place_nodes(sample.rates, sample.multipliers, sample.counts)
    allowed = precision * question.epsilon
    for _ in range(3):
        added = _lottery_cost(nodes, sample, question.tilt)
        if added <= allowed or nodes.rates.size >= sample.rates.size:
            break
        distance *= min(0.7, 0.9 * math.sqrt(allowed / added))
        nodes = place_nodes(sample.rates, sample.multipliers, sample.counts, distance)
    if sample is not terms:
        nodes = place_nodes(terms.rates, terms.multipliers, terms.counts, distance)
    if terms.mu_squared == 0:
        return nodes
    return LossNodes(
        np.append(nodes.rates, 1.0),
        np.append(nodes.multipliers, 1 / math.sqrt(terms.mu_squared)),
        np.vstack([nodes.corners, np.full((1, 4), nodes.rates.size)]),
        np.vstack([nodes.odds, [[1.0, 0.0, 0.0, 0.0]]]),
        np.append(nodes.counts, 1.0),
    )


def choose_step(nodes: LossNodes, question: Question, precision: float, others: int = 0) -> float:
    """The widest grid step whose rounding raises epsilon by a relative error of about ``precision``.

    Args:
        nodes: The sampled Gaussians, possibly none.
        question: The point on the privacy curve.
        precision: Relative error to allow.
        others: Number of other releases that share the grid.
    """
    allowed = precision * question.epsilon
    step = min(1.0, question.epsilon)
    highest = loss_at(_REACH + 1.0 / nodes.multipliers, nodes.rates, nodes.multipliers)
    span = float(np.max(highest - loss_at(-_REACH, nodes.rates, nodes.multipliers), initial=0.0))
    finest = max(span * nodes.rates.size / _MOST_MASSES, 4 * question.epsilon / MOST_POINTS)
    counts, tilt = nodes.node_counts, question.tilt
    for _ in range(60):
        variance = others * step**2 / _SIXTH
        if counts.size:
            variance += float(counts @ rounding_variance(nodes.rates, nodes.multipliers, step, tilt))
        added = 0.5 * (tilt + 1.0) * variance
        if added <= allowed or step <= finest:
            break
        step = max(finest, step * min(0.9, 0.95 * math.sqrt(allowed / added)))
    return max(finest, step * question.width)


def _sample(terms: Terms) -> Terms:
    """Evenly spaced releases in the order of their multipliers, which stand for those between; few ones are all kept.

    The ends are kept, so that the same distance gives the same nodes.
    """
    if terms.counts.size <= MOST_LOTTERIES:
        return terms
    order = np.argsort(terms.multipliers, kind="stable")
    chosen = order[np.linspace(0, order.size - 1, MOST_LOTTERIES).astype(np.int64)]
    counts = terms.counts[chosen] * (terms.counts.sum() / terms.counts[chosen].sum())
    return replace(terms, rates=terms.rates[chosen], multipliers=terms.multipliers[chosen], counts=counts)


def _lottery_cost(nodes: LossNodes, terms: Terms, tilt: float) -> float:
    """The amount that the lotteries add to epsilon, computed from the moment at the tilt."""
    exact = _log_moments(terms.rates, terms.multipliers, tilt)
    corners = _log_moments(nodes.rates, nodes.multipliers, tilt)[nodes.corners]
    # log of the lottery's mean moment relative to the exact one, computed without cancellation
    raised = np.log1p((nodes.odds * np.expm1(np.minimum(corners - exact[:, None], 500.0))).sum(axis=1))
    return float(terms.counts @ raised) / tilt


def _log_moments(rates: Floats, multipliers: Floats, tilt: float) -> Floats:
    excess = log_moment_excess(rates, multipliers, np.full(rates.shape, 1.0 + tilt))
    moments: Floats = np.logaddexp(0.0, excess)
    return moments
