"""Lower bounds on epsilon from guesses who was in the data: three theorems, each with its p-value.

A canary is in the data by a fair coin. An auditor guesses the coins from what was released. The more guesses are
correct, the larger epsilon must be. ``p_value`` is the probability of at least as many correct guesses if the claim
holds, and ``lower bound`` is the largest epsilon whose p-value is below one minus the confidence.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from monitors import checks
from monitors.gaussian import gaussian_epsilon

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

#: Confidence of the bounds that a report shows.
CONFIDENCE = 0.95

#: Confidence of the Gaussian bound, which is nearly tight: at 95 %, it would exceed epsilon in a few correct audits.
GAUSSIAN_CONFIDENCE = 0.99

#: Largest epsilon and largest mu that a search considers.
_HIGHEST = 64.0
_PRECISION = 1e-4

#: Probability that a false-positive rate lies outside the interval that is searched, and the rates that are searched.
_OUTSIDE, _RATES = 1e-8, 49


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


def gaussian_p_value(errors: ErrorCounts, mu: float) -> float:
    """Bound on the probability of errors at least as few as these if the trade-off curve is that of ``mu``-Gaussian DP.

    Both counts are taken as independent binomial variables, with rates on the curve. They are ordered by the mu that
    they estimate. The false-positive rate is unknown: the largest probability over its interval of confidence counts,
    and the probability of a rate outside is added.

    Args:
        errors: The errors.
        mu: The claim, at least 0.

    References:
        Nasr et al. 2023, "Tight Auditing of Differentially Private Machine Learning" (arXiv 2302.07956), for the curve;
        Berger and Boos 1994, "P Values Maximized Over a Confidence Set for the Nuisance Parameter".

    Example:
        >>> gaussian_p_value(ErrorCounts(50, 1000, 200, 1000), mu=2.0) < 1e-4
        True
    """
    outside, inside = errors.outside, errors.inside
    if not outside or not inside:
        return 1.0
    estimated = _rate_quantile(errors.false_positives, outside) + _rate_quantile(errors.false_negatives, inside)
    low, high = clopper_pearson(errors.false_positives, outside, 1.0 - _OUTSIDE)
    rates = special.ndtr(np.linspace(special.ndtri(max(low, 1e-12)), special.ndtri(min(high, 1.0 - 1e-12)), _RATES))
    counts = np.arange(
        stats.binom.ppf(_OUTSIDE, outside, rates[0]), stats.binom.ppf(1.0 - _OUTSIDE, outside, rates[-1]) + 1
    )
    # For each count of false positives, the most false negatives that give an estimate of mu at least as large.
    most = (inside + 1) * special.ndtr(estimated - _rate_quantile(counts, outside)) - 0.5
    at_most = stats.binom.cdf(np.floor(most + 1e-9), inside, special.ndtr(-special.ndtri(rates) - mu)[:, None])
    reached = np.einsum("ij,ij->i", stats.binom.pmf(counts, outside, rates[:, None]), at_most)
    return min(1.0, float(reached.max()) + 3 * _OUTSIDE)


def gaussian_mu_bound(errors: ErrorCounts, confidence: float = GAUSSIAN_CONFIDENCE) -> float:
    """Lower bound on the mu of Gaussian DP; see ``gaussian_p_value``.

    Example:
        >>> round(gaussian_mu_bound(ErrorCounts(50, 1000, 200, 1000)), 2)
        2.23
    """
    return _largest(lambda mu: gaussian_p_value(errors, mu) < 1.0 - confidence)


def _rate_quantile(count: Any, total: int) -> Any:
    """The normal quantile of an error rate, which is finite for all counts."""
    return special.ndtri((count + 0.5) / (total + 1))


def likely_mu_bound(errors: ErrorCounts, confidence: float = GAUSSIAN_CONFIDENCE) -> float:
    """About ``gaussian_mu_bound``, in no time: the estimate of mu, less its standard errors (delta method).

    Example:
        >>> round(likely_mu_bound(ErrorCounts(50, 1000, 200, 1000)), 2)
        2.29
    """
    mu = variance = 0.0
    for count, total in ((errors.false_positives, errors.outside), (errors.false_negatives, errors.inside)):
        quantile, rate = float(_rate_quantile(count, total)), (count + 0.5) / (total + 1)
        mu -= quantile
        variance += rate * (1.0 - rate) / (total * stats.norm.pdf(quantile) ** 2)
    return mu - float(special.ndtri(confidence)) * math.sqrt(variance)


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
