"""Lower bounds on epsilon from guesses who was in the data: three theorems, each with its p-value.

A canary is in the data by a fair coin. An auditor guesses the coins from what was released. The more guesses are
correct, the larger epsilon must be. ``p_value`` is the probability of at least as many correct guesses if the claim
holds, and ``lower bound`` is the largest epsilon whose p-value is below one minus the confidence.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from monitors import checks
from monitors.gaussian import gaussian_epsilon

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

#: Confidence of the bounds that a report shows.
CONFIDENCE = 0.95

#: Largest epsilon and largest mu that a search considers.
_HIGHEST = 64.0
_PRECISION = 1e-4


@dataclass(frozen=True)
class Guesses:
    """Guesses of the coins of ``canaries`` canaries; the auditor abstains for those without a clear score.

    Args:
        canaries: Number of canaries.
        made: Number of guesses.
        correct: Number of correct ones.

    Example:
        >>> Guesses.of(np.array([3.0, -2.0, 0.1, 1.0]), np.array([True, False, True, False]), made=2)
        Guesses(canaries=4, made=2, correct=2)
    """

    canaries: int
    made: int
    correct: int

    def __post_init__(self) -> None:
        checks.positive_int(canaries=self.canaries, made=self.made)
        checks.non_negative_int(correct=self.correct)
        if not self.correct <= self.made <= self.canaries:
            raise ValueError(f"need correct <= made <= canaries, got {self}")

    @classmethod
    def of(cls, scores: Floats, included: Bools, made: int) -> Guesses:
        """Guess "in" for the highest scores and "out" for the lowest, half of ``made`` each.

        Args:
            scores: Score of each canary, shape (m,).
            included: The secret coins, shape (m,).
            made: Number of guesses; it must not depend on the coins.
        """
        order = np.argsort(scores, kind="stable")
        low, high = made // 2, made - made // 2
        correct = int((~included[order[:low]]).sum()) + int(included[order[len(order) - high :]].sum())
        return cls(len(scores), made, correct)


def one_run_p_value(guesses: Guesses, epsilon: float, delta: float) -> float:
    """Bound on the probability of at least ``guesses.correct`` correct guesses under (epsilon, delta)-DP.

    Nothing is assumed about the mechanism. With independent coins, the number of correct guesses is dominated by a
    binomial variable with success probability ``e^epsilon / (1 + e^epsilon)``, up to a term in delta.

    Args:
        guesses: The guesses.
        epsilon: The claim, at least 0.
        delta: The claim, in [0, 1].

    References:
        Steinke, Nasr and Jagielski 2023, "Privacy Auditing with One (1) Training Run" (arXiv 2305.08846), theorem 5.2
        and corollary 5.4.

    Example:
        >>> one_run_p_value(Guesses(1000, 100, 75), epsilon=0.0, delta=0.0) < 1e-6
        True
    """
    made, correct = guesses.made, guesses.correct
    success = float(special.expit(epsilon))
    reached = float(stats.binom.sf(correct - 1, made, success))
    if delta == 0 or correct == 0:
        return min(1.0, reached)
    below = np.cumsum(stats.binom.pmf(np.arange(correct - 1, -1, -1), made, success))
    slope = float(np.max(below / np.arange(1, correct + 1)))
    return min(1.0, reached + 2.0 * guesses.canaries * delta * slope)


def one_run_epsilon(guesses: Guesses, delta: float, confidence: float = CONFIDENCE) -> float:
    """Lower bound on epsilon at ``delta``, without an assumption on the mechanism; see ``one_run_p_value``.

    Example:
        The example of the paper's appendix D:

        >>> round(one_run_epsilon(Guesses(1000, 100, 75), delta=1e-4), 2)
        0.67
    """
    return _largest(lambda epsilon: one_run_p_value(guesses, epsilon, delta) < 1.0 - confidence)


def f_dp_rejects(guesses: Guesses, mu: float, level: float) -> bool:
    """Whether the number of correct guesses contradicts mu-Gaussian DP at ``level``.

    Let p_i be the probability of exactly i correct guesses out of r, of m canaries. For each set of counts T and each
    f-DP mechanism, ``sum_T i p_i / m <= 1 - f(sum_T (r - i + 1) p_{i-1} / m)``. Beginning with a tail of probability
    ``level`` at the observed count, the recursion finds the least mass that these inequalities require below it. More
    than the whole mass is a contradiction.

    Args:
        guesses: The guesses.
        mu: The claim, at least 0.
        level: Probability of a wrong rejection, in (0, 1).

    References:
        Mahloujifar, Melis and Chaudhuri 2024, "Auditing f-Differential Privacy in One Run" (arXiv 2410.22235),
        theorem 3.2 and algorithm 3.
    """
    m, made, correct = guesses.canaries, guesses.made, guesses.correct
    hits = level * correct / m
    misses = level * (made - correct) / m
    most = made / m
    normal_cdf, normal_quantile = special.ndtr, special.ndtri
    for count in range(correct - 1, -1, -1):
        least = float(normal_cdf(normal_quantile(hits) - mu))
        if least > misses:
            hits += count / (made - count) * (least - misses)
            misses = least
        if hits + misses > most:
            return True
    return False


def f_dp_mu(guesses: Guesses, confidence: float = CONFIDENCE) -> float:
    """Lower bound on the mu of Gaussian DP; see ``f_dp_rejects``."""
    return _largest(lambda mu: f_dp_rejects(guesses, mu, 1.0 - confidence))


def f_dp_epsilon(guesses: Guesses, delta: float, confidence: float = CONFIDENCE) -> float:
    """Lower bound on epsilon at ``delta`` for a mechanism whose trade-off curve is that of a Gaussian mechanism.

    The composition of many steps is close to a Gaussian mechanism (Dong, Roth and Su 2022).

    Example:
        >>> few, many = Guesses(1000, 500, 300), Guesses(1000, 500, 400)
        >>> f_dp_epsilon(few, 1e-5) < f_dp_epsilon(many, 1e-5)
        True
    """
    return gaussian_epsilon(f_dp_mu(guesses, confidence), delta)


def f_dp_p_value(guesses: Guesses, mu: float) -> float:
    """The smallest level at which ``f_dp_rejects``, within a factor of 1.02."""
    if not f_dp_rejects(guesses, mu, 0.5):
        return 1.0
    low, high = math.log(1e-12), math.log(0.5)
    if f_dp_rejects(guesses, mu, math.exp(low)):
        return math.exp(low)
    while high - low > 0.02:
        middle = (low + high) / 2
        low, high = (low, middle) if f_dp_rejects(guesses, mu, math.exp(middle)) else (middle, high)
    return math.exp(high)


@dataclass(frozen=True)
class ErrorCounts:
    """Errors of one threshold on canaries that had no part in its choice.

    Args:
        false_positives: Canaries outside the data whose score is above the threshold.
        outside: Canaries outside the data.
        false_negatives: Canaries in the data whose score is at most the threshold.
        inside: Canaries in the data.
    """

    false_positives: int
    outside: int
    false_negatives: int
    inside: int

    @classmethod
    def at(cls, threshold: float, scores: Floats, included: Bools) -> ErrorCounts:
        """The errors at ``threshold``."""
        above = scores > threshold
        return cls(
            int((above & ~included).sum()), int((~included).sum()), int((~above & included).sum()), int(included.sum())
        )

    def largest_rates(self, confidence: float) -> tuple[float, float]:
        """Upper limits of both error rates, jointly at ``confidence`` (Clopper and Pearson 1934)."""
        level = (1.0 - confidence) / 2
        return (
            _largest_rate(self.false_positives, self.outside, level),
            _largest_rate(self.false_negatives, self.inside, level),
        )


def clopper_pearson(count: int, total: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The interval of a probability, from ``count`` successes in ``total`` independent trials.

    References:
        Clopper and Pearson 1934.

    Example:
        >>> low, high = clopper_pearson(0, 100)
        >>> low, round(high, 3)
        (0.0, 0.036)
    """
    level = (1.0 - confidence) / 2
    return 1.0 - _largest_rate(total - count, total, level), _largest_rate(count, total, level)


def gaussian_mu_bound(errors: ErrorCounts, confidence: float = CONFIDENCE) -> float:
    """Lower bound on the mu of Gaussian DP: ``-Phi^-1(FPR) - Phi^-1(FNR)`` at the upper limits of both error rates.

    References:
        Nasr et al. 2023, "Tight Auditing of Differentially Private Machine Learning" (arXiv 2302.07956).

    Example:
        >>> round(gaussian_mu_bound(ErrorCounts(50, 1000, 200, 1000)), 2)
        2.26
    """
    false_positive_rate, false_negative_rate = errors.largest_rates(confidence)
    if false_positive_rate >= 1.0 or false_negative_rate >= 1.0:
        return 0.0
    return max(0.0, -float(special.ndtri(false_positive_rate)) - float(special.ndtri(false_negative_rate)))


def gaussian_p_value(errors: ErrorCounts, mu: float) -> float:
    """The smallest level at which ``gaussian_mu_bound`` exceeds ``mu``, within a factor of 1.02."""
    if gaussian_mu_bound(errors, 0.0) <= mu:
        return 1.0
    low, high = math.log(1e-12), 0.0
    if gaussian_mu_bound(errors, 1.0 - math.exp(low)) > mu:
        return math.exp(low)
    while high - low > 0.02:
        middle = (low + high) / 2
        low, high = (low, middle) if gaussian_mu_bound(errors, 1.0 - math.exp(middle)) > mu else (middle, high)
    return math.exp(high)


def best_threshold(scores: Floats, included: Bools, judged: int, confidence: float = CONFIDENCE) -> float:
    """The threshold with the largest expected ``gaussian_mu_bound`` on ``judged`` other canaries.

    The scores of both kinds are taken as normal: the errors themselves would favour a threshold in the tails, where the
    few canaries happen to have none.

    Args:
        scores: Scores, shape (m,).
        included: The coins, shape (m,); both values occur at least twice.
        judged: Number of the other canaries.
        confidence: Of the bound.
    """
    inside, outside = (
        stats.norm(part.mean(), part.std(ddof=1) or 1.0) for part in (scores[included], scores[~included])
    )
    candidates = np.linspace(scores.min(), scores.max(), 200)
    half, level = judged / 2, (1.0 - confidence) / 2
    rates = [_largest_rates(half * part, half, level) for part in (outside.sf(candidates), inside.cdf(candidates))]
    with np.errstate(invalid="ignore"):
        found = -special.ndtri(rates[0]) - special.ndtri(rates[1])
    return float(candidates[int(np.argmax(np.where(np.isfinite(found), found, -np.inf)))])


def split_errors(scores: Floats, included: Bools, chosen_on: float = 0.2) -> ErrorCounts:
    """The errors of the threshold that is best on the first part of the canaries, counted on the others.

    Args:
        scores: Scores, shape (m,), in an order that does not depend on the coins.
        included: The coins, shape (m,).
        chosen_on: Fraction of the canaries on which the threshold is chosen.
    """
    first = round(chosen_on * len(scores))
    threshold = best_threshold(scores[:first], included[:first], len(scores) - first)
    return ErrorCounts.at(threshold, scores[first:], included[first:])


def _largest_rates(errors: Floats, total: float, level: float) -> Floats:
    found: Floats = np.where(
        errors >= total, 1.0, stats.beta.ppf(1.0 - level, errors + 1.0, np.maximum(total - errors, 1e-9))
    )
    return found


def _largest_rate(errors: int, total: int, level: float) -> float:
    return float(_largest_rates(np.array([float(errors)]), total, level)[0])


def _largest(rejected: Callable[[float], bool]) -> float:
    """The largest value that is rejected, rounded down; 0 if 0 is not rejected."""
    if not rejected(0.0):
        return 0.0
    low, high = 0.0, _HIGHEST
    while high - low > _PRECISION:
        middle = (low + high) / 2
        low, high = (middle, high) if rejected(middle) else (low, middle)
    return low
