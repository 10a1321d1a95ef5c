"""The sum of products of clipped vectors, ``x x'`` and ``x y'``, whose sensitivity holds exactly."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mechanisms.sums.triangle import PAIR, SQUARED_NORM, matrix_of, weighted_triangle
from mechanisms.sums.vector_sum import require_bound, require_room
from monitors import checks

#: Weight of ``x y'``.
_CROSS = 12
#: Squared norm of all weighted products, at most, for vectors of norm one.
_SQUARED_NORM = SQUARED_NORM + _CROSS**2
#: Bits of a clipped number, at most and at least; those of the weighted sum of all examples, without the weights.
_MOST_BITS, _FEWEST_BITS, _BITS = 20, 8, 56
#: Examples in one product of matrices: float64 adds up that many products exactly.
_AT_ONCE = 4096
#: Relative margin between clipped norms and their bound, so that rounding in float64 cannot exceed the bound.
_MARGIN = 1e-9


class ClippedProductSum:
    """Adds up ``x x'`` and ``x y'`` over the examples, each vector clipped to its L2 norm bound.

    Guarantees: adding or removing one example moves ``total`` by at most ``norm_bound`` in L2 norm, exactly. Clipped
    numbers are rounded towards zero to integers; products and sums of these are exact. An example whose ``x`` or ``y``
    is not finite contributes exactly zero.

    Sensitivity: let ``q`` and ``t`` be the integers of one example, of norm at most ``M`` each. ``total`` holds
    ``12 q_i^2``, ``17 q_i q_j`` for ``i < j``, and ``12 q_i t_k``. Because ``|q|^4 = sum_i q_i^4 + 2 sum_{i<j} q_i^2
    q_j^2``, the squared norm of the first two kinds is at most ``max(12^2, 17^2 / 2) |q|^4``, and that of the third is
    ``12^2 |q|^2 |t|^2``. Together they are at most ``288.5 M^4``: ``norm_bound`` is its root.

    Args:
        x_bound: Largest L2 norm of ``x``, positive. It must not depend on the data.
        y_bound: Largest L2 norm of ``y``, positive. It must not depend on the data.
        num_examples: Number of examples that will be added, which is public.

    Attributes:
        norm_bound: L2 sensitivity of ``total``.
        grid: 1.0: ``total`` counts in whole numbers.
        added: Number of examples that were added.

    Example:
        >>> products = ClippedProductSum(x_bound=1.0, y_bound=1.0, num_examples=2)
        >>> products.add([[0.6, 0.8], [0.0, 5.0]], [[1.0], [1.0]])
        >>> second, cross = products.unpacked(products.total)
        >>> second.round(4).tolist(), cross.round(4).tolist()
        ([[0.36, 0.48], [0.48, 1.64]], [[0.6], [1.8]])
    """

    grid = 1.0

    def __init__(self, x_bound: float, y_bound: float, num_examples: int) -> None:
        require_bound(x_bound=x_bound, y_bound=y_bound)
        checks.positive_int(num_examples=num_examples)
        bits = min(_MOST_BITS, (_BITS - int(num_examples).bit_length()) // 2)
        if bits < _FEWEST_BITS:
            raise ValueError(f"num_examples must be below 2**{_BITS - 2 * _FEWEST_BITS}, got {num_examples}")
        self.x_bound, self.y_bound, self.num_examples = float(x_bound), float(y_bound), int(num_examples)
        self._largest = 1 << bits
        self.norm_bound = math.nextafter(math.sqrt(_SQUARED_NORM), math.inf) * self._largest**2
        self.added = 0
        self._second: NDArray[np.int64] | None = None
        self._cross: NDArray[np.int64] | None = None

    def __repr__(self) -> str:
        bounds = f"x_bound={self.x_bound:g}, y_bound={self.y_bound:g}"
        return f"ClippedProductSum({bounds}, {self.added:,} of {self.num_examples:,} examples)"

    def add(self, x: ArrayLike, y: ArrayLike) -> None:
        """Clip and add examples: ``x`` of shape (n, D), ``y`` of shape (n, K).

        Raises:
            ValueError: The shapes are wrong, or there are more examples than ``num_examples``.
        """
        # In a different layout, NumPy adds up several rows at once, and a norm may depend on the other examples.
        inputs, targets = (np.asarray(rows, dtype=np.float64, order="C") for rows in (x, y))
        shape = (inputs.shape[-1:], targets.shape[-1:])
        known = shape if self._cross is None else ((self._cross.shape[0],), (self._cross.shape[1],))
        if inputs.ndim != 2 or targets.ndim != 2 or len(inputs) != len(targets) or 0 in (*shape[0], *shape[1]):
            raise ValueError(f"x and y must have shapes (n, D) and (n, K), got {inputs.shape} and {targets.shape}")
        if shape != known:
            raise ValueError(f"x and y must have {known[0][0]} and {known[1][0]} columns, got {shape[0] + shape[1]}")
        require_room(self.added + len(inputs), self.num_examples)
        if self._second is None or self._cross is None:
            self._second = np.zeros((*shape[0], *shape[0]), dtype=np.int64)
            self._cross = np.zeros((*shape[0], *shape[1]), dtype=np.int64)
        for start in range(0, len(inputs), _AT_ONCE):
            left = self._integers(inputs[start : start + _AT_ONCE], self.x_bound)
            right = self._integers(targets[start : start + _AT_ONCE], self.y_bound)
            finite = (np.isfinite(left).all(axis=1) & np.isfinite(right).all(axis=1)).reshape(-1, 1)
            left, right = (np.where(finite, rows, 0.0) for rows in (left, right))
            second, cross = (left.T @ left).astype(np.int64), (left.T @ right).astype(np.int64)
            self.added += len(left)  # first: if a call is interrupted and repeated, no example may be added twice
            self._second += second
            self._cross += cross

    @property
    def total(self) -> NDArray[np.int64] | None:
        """The weighted products, shape (D (D + 1) / 2 + D K,), without noise; None before the first ``add``."""
        if self._second is None or self._cross is None:
            return None
        return np.concatenate((weighted_triangle(self._second), self._cross.ravel() * _CROSS))

    def unpacked(self, total: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """``X'X`` (D, D) and ``X'Y`` (D, K) in the units of the data, of numbers like ``total``, with or without noise.

        Raises:
            ValueError: No example was added, or the number of numbers is wrong.
        """
        numbers = np.asarray(total, dtype=np.float64)
        size, outputs = (0, 0) if self._cross is None else self._cross.shape
        pairs = size * (size + 1) // 2
        if numbers.shape != (pairs + size * outputs,) or not size:
            raise ValueError(f"total must have shape ({pairs + size * outputs},), got {numbers.shape}")
        unit = self.x_bound / self._largest
        second = matrix_of(numbers[:pairs] * (unit * unit), size)
        cross = numbers[pairs:].reshape(size, outputs) * (unit * self.y_bound / self._largest / _CROSS)
        return second, cross

    @property
    def pair_noise(self) -> float:
        """Standard deviation of the noise in an entry of ``X'X`` off the diagonal, for a noise multiplier of one."""
        return self.norm_bound / PAIR * (self.x_bound / self._largest) ** 2

    def _integers(self, rows: NDArray[np.float64], bound: float) -> NDArray[np.float64]:
        """Clipped rows in multiples of ``bound`` / ``_largest``, rounded towards zero; NaN for rows not finite."""
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            norms = np.sqrt(np.square(rows).sum(axis=1, keepdims=True))
            limit = bound * (1.0 - _MARGIN)
            factors = np.where(norms > limit, limit / norms, 1.0)
            return np.where(np.isfinite(norms), np.trunc(rows * factors / bound * self._largest), np.nan)
