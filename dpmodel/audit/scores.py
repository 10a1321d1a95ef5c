"""Scores of canaries: how likely the released sums make it that a canary was in the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpmodel.audit.bounds import ErrorCounts, Guesses, likely_mu_bound
from dpmodel.audit.training import Observed
from dpmodel.audit.watch import Stretch

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

#: Numbers of guesses among which one is chosen before the coins are looked at, over the number of canaries.
GUESSED = (0.02, 0.05, 0.1, 0.2, 0.35, 0.6, 1.0)

#: Ranks among which that of the threshold is chosen likewise, over the number of canaries.
RANKS = (0.001, 0.003, 0.01, *np.arange(0.02, 0.99, 0.02), 0.99, 0.997, 0.999)

#: Confidence at which thresholds are compared: bounds in the tails of the scores are large or small by chance.
_NEARLY_ALWAYS = 0.999

#: Canaries that are simulated to choose them.
_SIMULATED = 20000


def responses(stretch: Stretch) -> Floats:
    """What each step says about each canary, shape (steps, m): standard normal, plus the canary's size if it was drawn.

    A canary has the same entry in both tensors. With correlated noise, a draw shows in later steps too, and is
    collected from them.
    """
    along: Floats = stretch.innovations.sum(axis=1) / np.sqrt(2.0)
    weights = stretch.response
    if len(weights) == 1:
        return along
    collected: Floats = np.zeros_like(along)
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


@dataclass(frozen=True)
class Expected:
    """Simulated canaries of a training in which everything is as stated.

    Choices that are made on them do not depend on the coins.

    Args:
        scores: Their scores.
        included: Which are in the data.
        canaries: Number of canaries of the audit.
    """

    scores: Floats
    included: Bools
    canaries: int

    @classmethod
    def of(cls, observed: Observed) -> Expected:
        """The simulation of an audit."""
        sigma = np.concatenate([part.sigma for part in observed.parts])
        draw, plan = np.random.default_rng(0), observed.plan
        return cls(*simulated_scores(sigma, plan.rate, observed.share, _SIMULATED, draw), plan.canaries)

    def number_of_guesses(self, bound: Callable[[Guesses], float]) -> int:
        """The number of guesses with the largest expected ``bound``."""
        numbers = (max(10, round(part * self.canaries)) for part in GUESSED)
        return max(numbers, key=lambda made: bound(self._guesses(made)))

    def threshold(self) -> float:
        """The threshold whose errors give the largest bound that is reached nearly always."""
        candidates = np.quantile(self.scores, RANKS).tolist()
        return float(max(candidates, key=lambda value: likely_mu_bound(self._errors(value), _NEARLY_ALWAYS)))

    def _errors(self, threshold: float) -> ErrorCounts:
        found, half = ErrorCounts.at(threshold, self.scores, self.included), max(1, self.canaries // 2)
        false_positives, false_negatives = (
            round(half * count / total)
            for count, total in ((found.false_positives, found.outside), (found.false_negatives, found.inside))
        )
        return ErrorCounts(false_positives, half, false_negatives, half)

    def _guesses(self, made: int) -> Guesses:
        found = Guesses.of(self.scores, self.included, max(2, round(made * len(self.scores) / self.canaries)))
        return Guesses(self.canaries, made, min(made, round(found.correct * made / found.made)))


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
