"""Conversion of a Renyi curve to (epsilon, delta): the best known bound, and the older one behind published figures.

Each order ``a`` at which the Renyi divergence is at most ``rdp`` gives one valid (epsilon, delta) bound; the accountant
takes the smallest bound over its orders.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from monitors.registry import Registry

Floats = NDArray[np.floating]


class Conversion(Protocol):
    """One bound in both directions, each evaluated for an array of orders."""

    def epsilon(self, curve: Floats, orders: Floats, delta: float) -> Floats:
        """Epsilon at ``delta`` from each order; a negative value means 0."""

    def log_delta(self, curve: Floats, orders: Floats, epsilon: float) -> Floats:
        """Log of delta at ``epsilon`` from each order; a positive value means delta 1."""


CONVERSIONS: Registry[type[Conversion]] = Registry("RDP conversion")


@CONVERSIONS.register("improved")
class ImprovedConversion:
    """``rdp + log((a - 1) / a) - (log delta + log a) / (a - 1)``.

    Canonne, Kamath and Steinke 2020, proposition 12 (with Asoodeh et al. 2020). If ``delta^2 >= 1 - exp(-rdp)``, the
    total variation alone gives epsilon 0 (Bretagnolle and Huber 1979).

    Example:
        >>> import numpy as np
        >>> ImprovedConversion().epsilon(np.array([0.5]), np.array([8.0]), 1e-5).round(4)
        array([1.7141])
    """

    def epsilon(self, curve: Floats, orders: Floats, delta: float) -> Floats:
        """Epsilon at ``delta`` by each order."""
        bound: Floats = curve + np.log1p(-1.0 / orders) - (math.log(delta) + np.log(orders)) / (orders - 1.0)
        return bound

    def log_delta(self, curve: Floats, orders: Floats, epsilon: float) -> Floats:
        """Log of delta at ``epsilon`` by each order."""
        bound: Floats = (orders - 1.0) * (curve - epsilon + np.log1p(-1.0 / orders)) - np.log(orders)
        return bound

    def log_delta_anywhere(self, divergence: float) -> float:
        """Half the log of ``1 - exp(-rdp)``."""
        return 0.5 * math.log(-math.expm1(-divergence)) if divergence > 0 else -math.inf


@CONVERSIONS.register("classic")
class ClassicConversion:
    """``rdp + log(1 / delta) / (a - 1)`` (Mironov 2017, proposition 3), as used by MindArmour and older papers.

    Never smaller than the improved bound; kept so that published figures can be reproduced.

    Example:
        >>> import numpy as np
        >>> ClassicConversion().epsilon(np.array([0.5]), np.array([8.0]), 1e-5).round(4)
        array([2.1447])
    """

    def epsilon(self, curve: Floats, orders: Floats, delta: float) -> Floats:
        """Epsilon at ``delta`` by each order."""
        bound: Floats = curve - math.log(delta) / (orders - 1.0)
        return bound

    def log_delta(self, curve: Floats, orders: Floats, epsilon: float) -> Floats:
        """Log of delta at ``epsilon`` by each order."""
        bound: Floats = (orders - 1.0) * (curve - epsilon)
        return bound

    def log_delta_anywhere(self, divergence: float) -> float:
        """The older papers have no such bound: delta 1."""
        del divergence
        return 0.0
