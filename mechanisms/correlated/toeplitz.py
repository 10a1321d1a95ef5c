"""Banded Toeplitz matrices: the coefficients of C, the error of noise ``C^-1 z``, and its minimum.

Choquette-Choo et al. 2023, "(Amplified) banded matrix factorization" (arXiv 2306.08153); McKenna 2024, "Scaling up the
banded matrix factorization mechanism" (arXiv 2405.15913).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mechanisms.correlated.workload import Workload
from monitors import checks

Floats = NDArray[np.float64]
Vector = np.ndarray[tuple[int], np.dtype[np.float64]]

#: Range of the coefficients after the first, relative to it: non-negative, and small enough for a stable inverse.
_LARGEST = 0.999


def square_root_coefficients(bands: int) -> Floats:
    """The first coefficients of the square root of the prefix-sum matrix, scaled to norm 1, shape (bands,).

    Example:
        >>> square_root_coefficients(2).round(4)
        array([0.8944, 0.4472])
    """
    checks.positive_int(bands=bands)
    k = np.arange(1, bands)
    return _normalised(np.concatenate([[1.0], np.cumprod((k - 0.5) / k)]))


def factorisation_error(coefficients: Floats, workload: Workload) -> float:
    """Standard deviation of the workload's noise for a multiplier of 1, over that of independent noise.

    Args:
        coefficients: The first column of C, shape (bands,); scaled to norm 1 here.
        workload: What the optimizer makes of the noise.

    Example:
        >>> round(factorisation_error(square_root_coefficients(8), Workload.of_last_iterate([1.0] * 100)), 3)
        0.438
    """
    scaled = _normalised(np.asarray(coefficients, dtype=np.float64))
    return math.sqrt(_error(scaled, workload) / _error(np.ones(1), workload))


def optimal_coefficients(bands: int, workload: Workload) -> Floats:
    """Coefficients of norm 1 that minimise ``factorisation_error``, shape (bands,).

    The minimum is sought from ``square_root_coefficients`` on by L-BFGS with the exact gradient. More bands than steps
    change nothing.

    Example:
        >>> optimal_coefficients(2, Workload.of_last_iterate([1.0] * 100)).round(3)
        array([0.779, 0.627])
    """
    from scipy.optimize import minimize

    start = square_root_coefficients(bands)
    if bands == 1:
        return start

    def error(tail: Vector) -> float:
        return _log_error_and_gradient(tail, workload)[0]

    def slope(tail: Vector) -> Vector:
        return _log_error_and_gradient(tail, workload)[1].reshape(-1)

    found = minimize(
        error,
        start[1:] / start[0],
        method="L-BFGS-B",
        jac=slope,
        bounds=[(0.0, _LARGEST)] * (bands - 1),
        options={"maxiter": 200},
    )
    best = _normalised(np.concatenate([[1.0], found.x]))
    return min((best, start), key=lambda coefficients: factorisation_error(coefficients, workload))


def _normalised(coefficients: Floats) -> Floats:
    scaled: Floats = coefficients / np.linalg.norm(coefficients)
    return scaled


def _inverted(coefficients: Floats, signal: Floats) -> Floats:
    """``C^-1 signal``."""
    from scipy.signal import lfilter

    filtered: Floats = lfilter([1.0], coefficients, signal)
    return filtered


def _error(coefficients: Floats, workload: Workload) -> float:
    return float(workload.importance @ np.square(_inverted(coefficients, workload.signal)))


def _log_error_and_gradient(tail: Floats, workload: Workload) -> tuple[float, Floats]:
    """Logarithm of error times squared norm, for coefficients ``(1, tail)``, and its gradient by ``tail``."""
    coefficients = np.concatenate([[1.0], tail])
    result = _inverted(coefficients, workload.signal)
    error = float(workload.importance @ np.square(result))
    norm = 1.0 + float(tail @ tail)
    # d result / d c_k is minus the twice filtered signal, k steps later
    twice, weighted = _inverted(coefficients, result), workload.importance * result
    slopes = np.array(
        [-2.0 * float(weighted[k:] @ twice[: max(len(twice) - k, 0)]) for k in range(1, len(coefficients))]
    )
    return math.log(error) + math.log(norm), slopes / error + 2.0 * tail / norm
