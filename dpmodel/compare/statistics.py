"""Means, standard deviations and Student intervals over seeds, and paired differences between variants."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """Summary of a few numbers, one per seed.

    Args:
        count: Number of values, at least 1.
        mean: Their mean.
        deviation: Their standard deviation (n - 1 in the denominator); None for a single value.
        low: Lower end of the 95 % Student interval of the mean; None for a single value.
        high: Upper end of the interval.
    """

    count: int
    mean: float
    deviation: float | None
    low: float | None
    high: float | None


def summarise(values: Sequence[float], limits: tuple[float, float] | None = None) -> Summary:
    """Mean, standard deviation and 95 % interval of the mean of ``values``.

    Args:
        values: At least one.
        limits: Smallest and largest possible value, such as (0, 1) for an accuracy. The interval is truncated there,
            which does not change its coverage. If a value is outside the limits, they are ignored.

    Raises:
        ValueError: There are no values.

    Example:
        >>> found = summarise([0.90, 0.92, 0.94])
        >>> round(found.mean, 4), round(found.deviation, 4), round(found.low, 4), round(found.high, 4)
        (0.92, 0.02, 0.8703, 0.9697)
    """
    count = len(values)
    if not count:
        raise ValueError("values must hold at least one number, got none")
    mean = math.fsum(values) / count
    if count == 1:
        return Summary(1, mean, None, None, None)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    reach = _student_quantile(count - 1) * deviation / math.sqrt(count)
    low, high = mean - reach, mean + reach
    if limits is not None and all(limits[0] <= value <= limits[1] for value in values):
        low, high = max(low, limits[0]), min(high, limits[1])
    return Summary(count, mean, deviation, low, high)


def paired_difference(
    values: Mapping[int, float], baseline: Mapping[int, float], limits: tuple[float, float] | None = None
) -> Summary | None:
    """Differences ``values - baseline`` over the seeds that both have; None if they share none.

    Args:
        values: Seed to result.
        baseline: Seed to result of the baseline.
        limits: Smallest and largest possible result, as in ``summarise``.

    Example:
        >>> round(paired_difference({1: 0.93, 2: 0.95}, {1: 0.92, 2: 0.94, 3: 0.9}).mean, 4)
        0.01
    """
    shared = [seed for seed in values if seed in baseline]
    if not shared:
        return None
    span = None if limits is None else limits[1] - limits[0]
    differences = [values[seed] - baseline[seed] for seed in shared]
    return summarise(differences, None if span is None else (-span, span))


def verdict(difference: Summary | None) -> str:
    """The meaning of a paired difference: ``"higher"``, ``"lower"``, or why it shows no difference.

    Example:
        >>> verdict(Summary(3, 0.01, 0.001, 0.0075, 0.0125)), verdict(Summary(3, 0.01, 0.02, -0.04, 0.06))
        ('higher', 'no difference shown')
    """
    if difference is None or difference.low is None or difference.high is None:
        return "too few seeds"
    if difference.low > 0:
        return "higher"
    return "lower" if difference.high < 0 else "no difference shown"


def _student_quantile(freedom: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.5 + CONFIDENCE / 2))
