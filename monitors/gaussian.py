"""The Gaussian mechanism without sampling: its exact privacy curve.

A composition of Gaussian releases of multipliers ``sigma_1, sigma_2, ...`` is one Gaussian mechanism with
``mu = sqrt(sum 1 / sigma_i^2)``. Its curve is known in closed form (Balle and Wang 2018, theorem 8; Dong, Roth and Su
2022, corollary 2.13): with ``a = epsilon / mu - mu / 2`` and ``b = a + mu``,

    delta = Phi(-a) - exp(epsilon) Phi(-b) = phi(a) [R(a) - R(b)],    R the Mills ratio.

The difference of Mills ratios is integrated as ``int_0^inf exp(-a s - s^2 / 2) (1 - exp(-mu s)) ds``. The integrand is
positive: nothing cancels, however small ``mu`` or ``delta`` is.
"""

from __future__ import annotations

import math

import numpy as np

from monitors import checks

# Trapezoid rule in log(s). The integrand decays like exp(y) to the left and exp(-exp(y)) to the right and is analytic
# for |Im y| < pi / 4, so this step gives an error of 1e-14 and these ends one of 1e-16.
_STEP = 0.15
_LOG_NODES = np.arange(-40.0, 4.5, _STEP)
_NODES = np.exp(_LOG_NODES)
_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)
# Results are rounded up by more than the rule's error, so that they are upper bounds in floating point too.
_OUTWARD = 1e-12


def gaussian_delta(mu: float, epsilon: float) -> float:
    """Smallest delta at which a Gaussian mechanism of ``mu`` is (epsilon, delta)-private.

    Args:
        mu: Sensitivity over noise standard deviation, ``sqrt(sum 1 / sigma^2)``; at least 0, infinite for no noise.
        epsilon: At least 0.

    Returns:
        Delta in [0, 1], rounded up by one part in 1e12.

    Example:
        >>> round(gaussian_delta(1.0, 1.0), 6)
        0.126937
    """
    _require_mu(mu)
    checks.non_negative(epsilon=epsilon)
    if mu == 0:
        return 0.0
    if math.isinf(mu):
        return 1.0
    log_delta, _ = _log_delta_and_slope(epsilon / mu - mu / 2, mu)
    return min(1.0, math.exp(log_delta) * (1 + _OUTWARD))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Smallest epsilon at which a Gaussian mechanism of ``mu`` is (epsilon, delta)-private.

    Args:
        mu: Sensitivity over noise standard deviation, ``sqrt(sum 1 / sigma^2)``; at least 0, infinite for no noise.
        delta: Strictly between 0 and 1.

    Returns:
        Epsilon of at least 0, rounded up by one part in 1e12; infinite if ``mu`` is infinite.

    Example:
        Ten unsampled epochs at multiplier 1.5:

        >>> round(gaussian_epsilon(10**0.5 / 1.5, 1e-5), 2)
        10.67
    """
    _require_mu(mu)
    checks.open_unit(delta=delta)
    if mu == 0:
        return 0.0
    if mu >= 1e150:
        return math.inf
    target = math.log(delta)
    low, high = -mu / 2, math.sqrt(2 * math.log(1 / delta)) + 1e-9
    if _log_delta_and_slope(low, mu)[0] <= target:
        return 0.0
    return mu * (_solve(mu, target, low, high) + mu / 2) * (1 + _OUTWARD)


def gaussian_mu(epsilon: float, delta: float) -> float:
    """Largest ``mu`` for which a Gaussian mechanism is (epsilon, delta)-private: the inverse of ``gaussian_epsilon``.

    Args:
        epsilon: Positive.
        delta: Strictly between 0 and 1.

    Example:
        >>> round(gaussian_mu(1.0, 1e-5), 4)
        0.2681
    """
    checks.positive(epsilon=epsilon)
    checks.open_unit(delta=delta)
    low, high = 0.0, 1.0
    while gaussian_delta(high, epsilon) < delta:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if gaussian_delta(middle, epsilon) <= delta else (low, middle)
    return low


def combined_multiplier(multipliers: list[float]) -> float:
    """Multiplier of the single Gaussian release equivalent to several of the same data: ``(sum sigma^-2)^(-1/2)``.

    Example:
        >>> combined_multiplier([2.0, 2.0, 2.0, 2.0])
        1.0
    """
    smallest = min(multipliers)
    return smallest / math.sqrt(math.fsum((smallest / multiplier) ** 2 for multiplier in multipliers))


def _solve(mu: float, target: float, low: float, high: float) -> float:
    """The ``a`` in [low, high] whose log delta is ``target``, by Newton steps inside a shrinking bracket."""
    point = min(max(low, 0.0), high)
    for _ in range(200):
        value, slope = _log_delta_and_slope(point, mu)
        low, high = (point, high) if value > target else (low, point)
        step = point - (value - target) / slope if slope < 0 else math.nan
        following = step if low < step < high else (low + high) / 2
        if abs(following - point) <= 1e-14 * max(1.0, abs(point)) or high - low <= 1e-15 * max(1.0, abs(high)):
            return point if value <= target else _just_above(point, high, mu, target)
        point = following
    return high


def _just_above(point: float, high: float, mu: float, target: float) -> float:
    """A point just above ``point``, at most ``high``, whose log delta is known to be at most ``target``."""
    outward = point + 1e-13 * max(1.0, abs(point))
    return outward if outward < high and _log_delta_and_slope(outward, mu)[0] <= target else high


def _log_delta_and_slope(a: float, mu: float) -> tuple[float, float]:
    """Log delta at ``a``, and its derivative with respect to ``a``."""
    b = a + mu
    if a < -1:
        # delta is above 0.6 here: the closed form loses nothing
        second = math.exp(-0.5 * a * a - _LOG_SQRT_2PI) * _mills_ratio(b)
        delta = min(1.0, max(0.5 * math.erfc(a / math.sqrt(2)) - second, 0.5))
        return math.log(delta), -mu * second / delta
    scaled = _NODES / (1 + max(a, 0.0))
    weights = _STEP * scaled * np.exp(-a * scaled - 0.5 * scaled * scaled)
    difference = float(np.dot(weights, -np.expm1(-mu * scaled)))
    if difference <= 0:
        return -math.inf, 0.0
    slope = -mu * _mills_ratio(b) / difference
    return -0.5 * a * a - _LOG_SQRT_2PI + math.log(difference), slope


def _mills_ratio(x: float) -> float:
    if x < 0:
        return 0.5 * math.erfc(x / math.sqrt(2)) * math.exp(0.5 * x * x + _LOG_SQRT_2PI)
    scaled = _NODES / (1 + x)
    return float(np.sum(_STEP * scaled * np.exp(-x * scaled - 0.5 * scaled * scaled)))


def _require_mu(mu: float) -> None:
    if not (isinstance(mu, (int, float, np.floating)) and mu >= 0):
        raise ValueError(f"mu must be a number of at least 0, got {mu!r}")
