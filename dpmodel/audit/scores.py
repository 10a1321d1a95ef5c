"""Scores of canaries: how likely the released sums make it that a canary was in the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from dpmodel.audit.bounds import Guesses
from dpmodel.audit.training import Observed, Stretch

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

#: Numbers of guesses among which one is chosen before the coins are looked at, over the number of canaries.
GUESSED = (0.02, 0.05, 0.1, 0.2, 0.35, 0.6, 1.0)

#: Canaries that are simulated to choose it.
_SIMULATED = 8000


def responses(stretch: Stretch) -> Floats:
    """What each step says about each canary, shape (steps, m): standard normal, plus the canary's size if it was drawn.

    A canary has the same entry in both tensors. With correlated noise, a draw shows in later steps too, and is
    collected from them.
    """
    along = stretch.innovations.sum(axis=1) / np.sqrt(2.0)
    weights = stretch.response
    if len(weights) == 1:
        return along
    collected = np.zeros_like(along)
    for later, weight in enumerate(weights):
        collected[: len(along) - later] += weight * along[later:]
    return collected


def log_likelihoods(found: Floats, sigma: Floats, rate: float, share: float) -> Floats:
    """The log-likelihood ratio of "in the data, drawn by ``rate`` in each step" against "not in the data", shape (m,).

    Args:
        found: ``responses``, shape (steps, m).
        sigma: Noise multiplier over the sensitivity of each step, shape (steps,).
        rate: Probability of a draw in a step.
        share: Size of a canary over the sensitivity.
    """
    size = (share / sigma)[:, None]
    exponent = found * size - np.square(size) / 2
    if rate >= 1.0:
        summed: Floats = exponent.sum(axis=0)
        return summed
    ratios: Floats = np.logaddexp(np.log1p(-rate), np.log(rate) + exponent).sum(axis=0)
    return ratios


def scores(observed: Observed) -> Floats:
    """The score of each canary, over all steps, shape (m,)."""
    total = np.zeros(len(observed.included))
    for part in observed.parts:
        total += log_likelihoods(responses(part), part.sigma, observed.plan.rate, observed.share)
    return total


def number_of_guesses(
    sigma: Floats, rate: float, share: float, canaries: int, bound: Callable[[Guesses], float]
) -> int:
    """The number of guesses with the largest expected ``bound`` if everything is as stated.

    It is chosen on simulated canaries, so it does not depend on the coins.

    Args:
        sigma: Noise multiplier over the sensitivity of each step, shape (steps,).
        rate: Probability of a draw in a step.
        share: Size of a canary over the sensitivity.
        canaries: Number of canaries.
        bound: The bound.
    """
    draw = np.random.default_rng(0)
    simulated, included = simulated_scores(sigma, rate, share, _SIMULATED, draw)
    return max(
        (max(10, round(part * canaries)) for part in GUESSED),
        key=lambda made: bound(_scaled(simulated, included, made, canaries)),
    )


def simulated_scores(
    sigma: Floats, rate: float, share: float, canaries: int, draw: np.random.Generator
) -> tuple[Floats, Bools]:
    """Scores of simulated canaries, half of which are in the data, and which these are."""
    included = np.arange(canaries) % 2 == 0
    total = np.zeros(canaries)
    for step in range(len(sigma)):
        drawn = included & (draw.random(canaries) < rate)
        found = draw.standard_normal(canaries) + drawn * share / sigma[step]
        total += log_likelihoods(found[None], sigma[step : step + 1], rate, share)
    return total, included


def _scaled(simulated: Floats, included: Bools, made: int, canaries: int) -> Guesses:
    guesses = Guesses.of(simulated, included, max(2, round(made * len(simulated) / canaries)))
    return Guesses(canaries, made, min(made, round(guesses.correct * made / guesses.made)))


def joined(parts: Sequence[Stretch]) -> Floats:
    """The noise multipliers of all steps."""
    return np.concatenate([part.sigma for part in parts])
