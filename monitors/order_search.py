"""Search for the order with the smallest Renyi bound: a geometric grid that grows as needed, then a zoom."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

_RATIO = 1.3
_FIRST = 0.05 * _RATIO ** np.arange(32)  # order minus one, from 0.05 to 170
_SMALLEST, _LARGEST = 1e-7, 1e6
_EXTENSION = 10
_ZOOM_POINTS = 8
_ZOOMS = 4


def best_order(objective: Callable[[Floats], Floats]) -> tuple[float, bool]:
    """The order above 1 with the smallest ``objective``, to one part in a thousand of ``order - 1``.

    Near its minimum, a bound is quadratic in ``log(order - 1)``, so its value is far more precise than that.

    Args:
        objective: Function from an array of orders to an array of values.

    Returns:
        The order, and whether it lies at the upper end of the searched range (1 + 1e-7 to 1e6).

    Example:
        >>> order, at_end = best_order(lambda orders: 0.01 * orders + 11.5 / (orders - 1))
        >>> round(order, 1), at_end
        (34.9, False)
    """
    excess = _FIRST
    values = objective(1.0 + excess)
    while True:
        best = int(np.argmin(values))
        if best == 0 and excess[0] > _SMALLEST:
            added = excess[0] / _RATIO ** np.arange(_EXTENSION, 0, -1)
            excess, values = np.concatenate([added, excess]), np.concatenate([objective(1.0 + added), values])
        elif best == excess.size - 1 and excess[-1] < _LARGEST:
            added = excess[-1] * _RATIO ** np.arange(1, _EXTENSION + 1)
            excess, values = np.concatenate([excess, added]), np.concatenate([values, objective(1.0 + added)])
        else:
            break
    # the lower end does not count: order 1 is the limit, and nothing lies beyond it
    at_end = best == excess.size - 1
    for _ in range(_ZOOMS):
        low, high = excess[max(best - 1, 0)], excess[min(best + 1, excess.size - 1)]
        finer = np.unique(np.append(np.geomspace(low, high, _ZOOM_POINTS + 2), excess[best]))
        excess, values = finer, objective(1.0 + finer)
        best = int(np.argmin(values))
    return float(1.0 + excess[best]), at_end
