"""Mean, spread and Student intervals over seeds, and differences of runs that share a seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """A sample of a few numbers, one per seed.

    Args:
        count: How many, at least 1.
        mean: Their mean.
        deviation: Their standard deviation (n - 1 in the denominator); None for one number.
        low: Lower end of the 95 % Student interval of the mean; None for one number.
        high: Upper end of it.
    """

    count: int
    mean: float
    deviation: float | None
    low: float | None
    high: float | None


def summarise(values: Sequence[float]) -> Summary:
    """Mean, standard deviation and 95 % interval of the mean of ``values``.

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
    return Summary(count, mean, deviation, mean - reach, mean + reach)


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Summary | None:
    """Differences ``values - baseline`` over the seeds that both have; None where they share none.

    Example:
        >>> round(paired_difference({1: 0.93, 2: 0.95}, {1: 0.92, 2: 0.94, 3: 0.9}).mean, 4)
        0.01
    """
    shared = [seed for seed in values if seed in baseline]
    return summarise([values[seed] - baseline[seed] for seed in shared]) if shared else None


def verdict(difference: Summary | None) -> str:
    """What a paired difference shows, in words.

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
