"""Epsilon of a ledger under other neighbour relations: groups of examples, and replacement of one example."""

from __future__ import annotations

import math

from monitors import checks
from monitors.accountant import Accountant
from monitors.gaussian import gaussian_epsilon
from monitors.spent import resolve_accountant
from monitors.terms import Rows, gather

_SMALLEST_LOG_DELTA = math.log(1e-280)


def group_privacy(epsilon: float, delta: float, size: int) -> tuple[float, float]:
    """The guarantee for a group of ``k = size`` examples that follows from (epsilon, delta) for one example.

    It is ``(k epsilon, delta (exp(k epsilon) - 1) / (exp(epsilon) - 1))`` (Vadhan 2017, lemma 2.2).

    Example:
        >>> group_privacy(1.0, 1e-6, 2)
        (2.0, 3.718281828459046e-06)
    """
    checks.non_negative(epsilon=epsilon, delta=delta)
    checks.positive_int(size=size)
    return size * epsilon, math.exp(math.log(delta) + _log_growth(epsilon, size)) if delta > 0 else 0.0


def group_epsilon(ledger: Rows, delta: float, size: int, accountant: str | Accountant = "rdp") -> float:
    """Epsilon at ``delta`` for any ``size`` examples, added or removed together.

    Exact for unsampled Gaussians, because the sensitivity grows by the factor ``size``. Otherwise, ``group_privacy``
    is applied to the best (epsilon, delta) for one example.

    Args:
        ledger: What was released; its events hold for one example.
        delta: Strictly between 0 and 1.
        size: Examples in a group, at least 1.
        accountant: Name or object.

    Returns:
        Epsilon; infinite if delta cannot be reached.

    Example:
        >>> from monitors import GaussianEvent, Ledger
        >>> round(group_epsilon(Ledger().record(GaussianEvent(1.5), 10), 1e-5, 2), 2)
        26.18
    """
    checks.open_unit(delta=delta)
    checks.positive_int(size=size)
    rows = list(ledger)
    terms = gather(rows)
    if terms.unprotected:
        return math.inf
    if terms.only_unsampled:
        return gaussian_epsilon(size * math.sqrt(terms.mu_squared), delta)
    chosen = resolve_accountant(accountant)
    if size == 1:
        return chosen.epsilon(rows, delta)
    low, high = max(_SMALLEST_LOG_DELTA, math.log(delta) - 600), math.log(delta)
    best = math.inf
    for _ in range(40):
        middle = (low + high) / 2
        epsilon = chosen.epsilon(rows, math.exp(middle))
        if middle + _log_growth(epsilon, size) <= math.log(delta):
            best, low = min(best, size * epsilon), middle
        else:
            high = middle
        if high - low < 1e-3:
            break
    return best


def replace_one_epsilon(ledger: Rows, delta: float, accountant: str | Accountant = "rdp") -> float:
    """Epsilon at ``delta`` if neighbours differ by replacing one example.

    Replacing an example removes one and adds one, which is a group of two. The figure is exact for unsampled Gaussians
    and for shuffled epochs (twice the sensitivity), and an upper bound under Poisson sampling.

    Example:
        >>> from monitors import GaussianEvent, Ledger
        >>> round(replace_one_epsilon(Ledger().record(GaussianEvent(1.5), 10), 1e-5), 2)
        26.18
    """
    return group_epsilon(ledger, delta, 2, accountant)


def _log_growth(epsilon: float, size: int) -> float:
    """Log of ``(exp(k e) - 1) / (exp(e) - 1)``, the factor by which delta grows."""
    if epsilon == 0:
        return math.log(size)
    if epsilon > 600 / size:
        return size * epsilon - (epsilon if epsilon > 600 else math.log(math.expm1(epsilon)))
    return math.log(math.expm1(size * epsilon) / math.expm1(epsilon))
