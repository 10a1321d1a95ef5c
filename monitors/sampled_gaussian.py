"""Renyi differential privacy of one Gaussian release of a Poisson sample, to nine digits and more.

With ``w = x / sigma - 1 / (2 sigma^2)`` and ``x`` standard normal, the likelihood ratio of the data with one more
example to the data without it is ``1 + u``, ``u = q (exp(w) - 1)``. The Renyi divergence of order ``a`` is ``log(A) /
(a - 1)``, ``A = E[(1 + u)^a]`` (Mironov, Talwar and Zhang 2019, section 3.3: the other direction is never larger).
Because ``E[u] = 0``,

    A - 1 = E[(1 + u)^a - 1 - a u],

whose integrand is nowhere negative. It is integrated by the trapezoid rule, which converges geometrically for
integrands that are analytic in a strip. All computations use logarithms: nothing cancels if ``A - 1`` is far below
machine epsilon, and nothing overflows if ``A`` is far above 1e308. The same rule serves integer and fractional orders.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monitors import checks

Floats = NDArray[np.floating]

_TAIL = 8.0  # standard deviations kept on either side; the rest is below 1e-13 of the integral
_TAIL_NATS = 36.0  # on a long range, points this far below the largest one are dropped
_DIGITS = 28.0  # the trapezoid rule's error is exp(-_DIGITS)
_SCAN_STEP = 2.0  # bumps of the integrand are at least as wide as a unit normal
_LONG_RANGE = 192  # number of grid points above which the negligible part of the range is cut off first
_LONGEST_RANGE = 2_000_000  # number of grid points above which the unsampled curve, an upper bound, is used instead
_BLOCK = 1 << 16  # points evaluated at once, so that the temporaries stay in the processor's cache
_SMALL = 0.02  # below this, the leading terms of the integrand cancel and its power series is used
_LOWEST = -1e300  # logarithm that represents an integrand of zero in double precision
_LARGE = 600.0  # exponents are split here, far below overflow


def rdp_sampled_gaussian(sampling_rate: float, noise_multiplier: ArrayLike, orders: ArrayLike) -> Floats:
    """Renyi divergence of one Poisson-sampled Gaussian release, for adding or removing one example.

    The relative error is below 1e-9 for rates in [1e-7, 1], multipliers in [0.05, 100] and orders in [1.0001, 1e4]
    (measured against 40-digit quadrature); outside of these ranges the result is still finite and non-negative. For
    multipliers below about 1e-3, the unsampled curve, an upper bound, may be returned.

    Args:
        sampling_rate: Probability with which each example joins the sample, in (0, 1].
        noise_multiplier: Noise standard deviation over sensitivity, positive; a number, or an array of shape (sigmas,).
        orders: Renyi orders above 1; a number, or an array of shape (orders,).

    Returns:
        Shape (orders,) for a single multiplier, else (sigmas, orders).

    Raises:
        ValueError: An argument is out of range; the message names the value.

    Example:
        >>> rdp_sampled_gaussian(0.01, 1.0, [1.5, 8.3])
        array([0.00012725, 0.00098929])
    """
    checks.sampling_rate(sampling_rate=sampling_rate)
    sigmas = _positive_array("noise_multiplier", noise_multiplier)
    grid = order_array(orders)
    excess = grid - 1.0
    if sampling_rate == 1:
        curve = grid / (2.0 * sigmas[:, None] ** 2)
    else:
        sigma, alpha = np.broadcast_arrays(sigmas[:, None], grid[None, :])
        flat = log_moment_excess(np.full(sigma.size, float(sampling_rate)), sigma.ravel(), alpha.ravel())
        curve = np.logaddexp(0.0, flat).reshape(sigma.shape) / excess
    return curve[0] if np.ndim(noise_multiplier) == 0 else curve


def order_array(orders: ArrayLike) -> Floats:
    """Orders as a float array of shape (orders,), each checked to be finite and above 1."""
    grid = np.atleast_1d(np.asarray(orders, dtype=np.float64))
    if grid.ndim != 1 or grid.size == 0:
        raise ValueError(f"orders must be a number or a non-empty list of numbers, got {orders!r}")
    wrong = grid[~(np.isfinite(grid) & (grid > 1))]
    if wrong.size:
        raise ValueError(f"orders must be finite numbers above 1, got {wrong[0]!r}")
    return grid


def log_moment_excess(rates: Floats, sigmas: Floats, orders: Floats) -> Floats:
    """``log(A - 1)`` for each (rate, multiplier, order), all of shape (n,); rates must be below 1 (unchecked).

    Returns:
        Shape (n,); the Renyi divergence is ``log(1 + exp(result)) / (order - 1)``.
    """
    result = np.empty(rates.shape)
    step = _trapezoid_step(sigmas)
    left = np.full(rates.shape, -_TAIL)
    right = np.maximum(orders, 2.0) / sigmas + _TAIL
    long = (right - left) > _LONG_RANGE * step
    endless = long & ((right - left) > _LONGEST_RANGE * _SCAN_STEP)
    for index in np.flatnonzero(long & ~endless):
        left[index], right[index] = _active_range(rates[index], sigmas[index], orders[index], right[index])
    points = np.ceil(np.minimum((right - left) / step, 2.0 * _LONGEST_RANGE)).astype(np.int64) + 1
    endless |= points > _LONGEST_RANGE
    result[endless] = orders[endless] * (orders[endless] - 1) / (2 * sigmas[endless] ** 2)
    pending = np.flatnonzero(~endless)
    pending = pending[np.argsort(points[pending], kind="stable")]
    for rows in _blocks(pending, points):
        grid = np.arange(points[rows[-1]]) * step[rows, None] + left[rows, None]
        heights = _log_integrand(grid, rates[rows, None], sigmas[rows, None], orders[rows, None])
        top = heights.max(axis=1, keepdims=True)
        total = np.exp(heights - top).sum(axis=1)
        result[rows] = top[:, 0] + np.log(np.maximum(total, 1e-300) * step[rows]) - 0.5 * math.log(2 * math.pi)
    return result


def _trapezoid_step(sigmas: Floats) -> Floats:
    """Largest step with error exp(-_DIGITS), given that the singularities are pi sigma away from the real line."""
    strip = np.minimum(math.pi * sigmas, math.sqrt(2 * _DIGITS))
    step: Floats = 2 * math.pi * strip / (_DIGITS + 0.5 * strip * strip)
    return step


def _blocks(pending: NDArray[np.intp], points: NDArray[np.int64]) -> Any:
    """Consecutive groups of indices, sorted by length, whose padded grids have about ``_BLOCK`` points in total."""
    start = 0
    while start < pending.size:
        # rows are sorted by length, so a block is as wide as its last row
        stop = min(pending.size, start + max(1, _BLOCK // int(points[pending[start]])))
        while stop - start > 1 and (stop - start) * int(points[pending[stop - 1]]) > 2 * _BLOCK:
            stop = start + (stop - start + 1) // 2
        yield pending[start:stop]
        start = stop


def _active_range(rate: float, sigma: float, order: float, right: float) -> tuple[float, float]:
    """The part of [-_TAIL, right] that holds all but a negligible share of the integral."""
    step = float(_trapezoid_step(np.array([sigma]))[0])
    spacing = min(_SCAN_STEP, max(step, (right + _TAIL) / _LONGEST_RANGE))
    spacing = max(spacing, min(_SCAN_STEP, 1.0))
    grid = np.arange(-_TAIL, right + spacing, spacing)
    heights = _log_integrand(grid, rate, sigma, order)
    active = np.flatnonzero(heights >= heights.max() - _TAIL_NATS)
    return float(grid[active[0]] - 2 * spacing), float(grid[active[-1]] + 2 * spacing)


def _log_integrand(x: Floats, rate: Any, sigma: Any, order: Any) -> Floats:
    """``log(exp(-x^2/2) [(1 + u)^a - 1 - a u])``, computed from ``l = log(1 + u)`` and ``e = a - 1``.

    The bracket is ``exp(l) [expm1(e l) + e expm1(-l)]``; where the two terms cancel, its power series in ``l`` is used.
    """
    excess = order - 1.0
    with np.errstate(divide="ignore", over="ignore", invalid="ignore", under="ignore"):
        exponent = x / sigma - 0.5 / (sigma * sigma)
        loss = np.log1p(rate * np.expm1(np.minimum(exponent, _LARGE))) + np.maximum(exponent - _LARGE, 0.0)
        growth = excess * loss
        direct = np.expm1(np.minimum(growth, _LARGE)) + excess * np.expm1(-loss)
        bracket = np.where(np.abs(loss) * order < _SMALL, _series(loss, excess), direct)
        height: Floats = np.log(bracket) + (np.maximum(growth - _LARGE, 0.0) + loss - 0.5 * x * x)
    floored: Floats = np.fmax(height, _LOWEST)
    return floored


def _series(loss: Floats, excess: Any) -> Floats:
    """``sum over k >= 2 of (e^k + (-1)^k e) l^k / k!``; a direct difference would lose its first terms."""
    total: Floats = np.zeros_like(loss)
    for power in range(6, 1, -1):
        total = (total * loss) + (excess**power + (-1) ** power * excess) / math.factorial(power)
    return total * loss * loss


def _positive_array(name: str, values: ArrayLike) -> Floats:
    array = np.atleast_1d(np.asarray(values, dtype=np.float64))
    wrong = array[~(np.isfinite(array) & (array > 0))]
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} must be a number or a one-dimensional list of numbers, got {values!r}")
    if wrong.size:
        raise ValueError(f"{name} must be positive and finite, got {wrong[0]!r}")
    return array
