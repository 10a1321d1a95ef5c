"""The ROC curve of an attack: its scores of members and of others, and figures with their intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from dpmodel.audit.bounds import CONFIDENCE, ErrorCounts, clopper_pearson

Floats = NDArray[np.float64]

#: Most points of a curve that is drawn.
_DRAWN = 2000


@dataclass(frozen=True)
class RocCurve:
    """What every threshold on the scores reaches.

    Args:
        inside: Scores of members, shape (m,); higher means "member".
        outside: Scores of examples that are not members, shape (n,).

    Raises:
        ValueError: One of both is empty, or a score is not finite.

    Example:
        >>> RocCurve(np.array([2.0, 3.0, 0.5]), np.array([0.0, 1.0])).auc
        0.8333333333333334
    """

    inside: Floats
    outside: Floats

    def __post_init__(self) -> None:
        for name in ("inside", "outside"):
            found = getattr(self, name)
            if found.ndim != 1 or not found.size or not np.isfinite(found).all():
                raise ValueError(f"{name} must be one finite score for each of some examples, got {found!r}")

    @property
    def auc(self) -> float:
        """Area under the curve: the probability that a member's score exceeds another's, ties counted as a half."""
        ordered = np.sort(self.outside)
        below, up_to = (np.searchsorted(ordered, self.inside, side) for side in ("left", "right"))
        return float((below + up_to).sum()) / (2.0 * self.inside.size * self.outside.size)

    def auc_interval(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """The interval of the area: Wilson's, at the largest variance that an area of this size can have.

        The variance is at most ``auc (1 - auc) / min(m, n)``, whatever the two distributions are.

        References:
            Birnbaum and Klose 1957, "Bounds for the variance of the Mann-Whitney statistic"; Wilson 1927.
        """
        count, area = min(self.inside.size, self.outside.size), self.auc
        squared = float(stats.norm.isf((1.0 - confidence) / 2)) ** 2 / count
        middle = (area + squared / 2) / (1 + squared)
        reach = math.sqrt(squared * area * (1 - area) + squared**2 / 4) / (1 + squared)
        return max(0.0, middle - reach), min(1.0, middle + reach)

    def at(self, false_positive_rate: float) -> OperatingPoint:
        """The lowest threshold at which at most this part of the others is taken for members."""
        allowed = math.floor(false_positive_rate * self.outside.size + 1e-9)
        threshold = float(np.sort(self.outside)[::-1][min(allowed, self.outside.size - 1)])
        scores = np.concatenate([self.inside, self.outside])
        included = np.arange(scores.size) < self.inside.size
        return OperatingPoint(false_positive_rate, allowed, ErrorCounts.at(threshold, scores, included))

    def points(self) -> tuple[Floats, Floats]:
        """False- and true-positive rates of the curve for a figure, ascending."""
        total = self.outside.size
        wanted = np.unique(np.geomspace(1, total, min(total, _DRAWN)).round().astype(int))
        thresholds = np.sort(self.outside)[::-1]
        counts = np.concatenate([[0], wanted])
        # One more positive among the others at each of these thresholds, which are taken from below.
        cuts = np.append(thresholds, -np.inf)[counts]
        above = self.inside.size - np.searchsorted(np.sort(self.inside), cuts, side="right")
        return counts / total, above / self.inside.size


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold, and the errors there.

    Args:
        nominal: The false-positive rate that was asked for.
        allowed: The number of false positives that it allows; fewer occur if scores are equal.
        errors: Errors at the threshold.
    """

    nominal: float
    allowed: int
    errors: ErrorCounts

    @property
    def true_positive_rate(self) -> float:
        """Part of the members that is taken for members."""
        return (self.errors.inside - self.errors.false_negatives) / self.errors.inside

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """Clopper-Pearson interval of the true-positive rate at this threshold."""
        found = self.errors
        return clopper_pearson(found.inside - found.false_negatives, found.inside, confidence)

    def certain_rates(self, confidence: float) -> tuple[float, float]:
        """Upper limit of the false-positive rate and lower limit of the true-positive rate, jointly at ``confidence``.

        The threshold is an order statistic of the others' scores. So the false-positive rate has a Beta distribution,
        whose quantile the Clopper-Pearson limit at ``allowed`` false positives is.
        """
        found = self.errors
        counted = ErrorCounts(self.allowed, found.outside, found.false_negatives, found.inside)
        false_positives, false_negatives = counted.largest_rates(confidence)
        return false_positives, 1.0 - false_negatives
