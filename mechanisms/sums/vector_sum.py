"""The sum of clipped vectors, one per example, whose sensitivity holds exactly in floating point."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monitors import checks

#: Bits of a clipped number below its bound, at most; the sum of all examples takes at most 61 bits.
_FINENESS, _BITS = 40, 61
#: Relative margin between clipped norms and their bound, so that rounding in float64 cannot exceed the bound.
_MARGIN = 1e-9
_BOUNDS = (1e-100, 1e100)


class ClippedVectorSum:
    """Adds up one vector per example, each clipped to an L2 norm of at most ``norm_bound``.

    Guarantees: adding or removing one example moves the sum by at most ``norm_bound``, also in floating point. Clipped
    numbers are rounded towards zero to multiples of ``grid`` and added as integers, so the sum does not depend on the
    order of the examples, nor on how they were split into chunks. A vector whose norm is not finite contributes exactly
    zero.

    Args:
        norm_bound: Largest L2 norm of the vector of one example, positive. It must not depend on the data.
        num_examples: Number of examples that will be added, which is public.

    Attributes:
        total: The integers (D,), in multiples of ``grid``; None before the first ``add``. Private: it has no noise.
        added: Number of examples that were added.

    Example:
        >>> clipped = ClippedVectorSum(norm_bound=5.0, num_examples=3)
        >>> clipped.add([[3.0, 4.0], [30.0, 40.0], [np.nan, 1.0]])
        >>> (clipped.total * clipped.grid).round(6).tolist()
        [6.0, 8.0]
    """

    def __init__(self, norm_bound: float, num_examples: int) -> None:
        require_bound(norm_bound=norm_bound)
        checks.positive_int(num_examples=num_examples)
        self.norm_bound = float(norm_bound)
        self.num_examples = int(num_examples)
        if self.num_examples.bit_length() >= _BITS:
            raise ValueError(f"num_examples must be below 2**{_BITS - 1}, got {num_examples}")
        self.grid = grid_for(self.norm_bound, self.num_examples)
        self.total: NDArray[np.int64] | None = None
        self.added = 0

    def __repr__(self) -> str:
        return f"ClippedVectorSum(norm_bound={self.norm_bound:g}, {self.added:,} of {self.num_examples:,} examples)"

    def add(self, vectors: ArrayLike) -> None:
        """Clip and add ``vectors``, one row per example, shape (n, D).

        Raises:
            ValueError: The shape is wrong, or there are more examples than ``num_examples``.
        """
        rows = np.array(vectors, dtype=np.float64)
        length = None if self.total is None else len(self.total)
        if rows.ndim != 2 or not rows.shape[1] or length not in (None, rows.shape[1]):
            raise ValueError(
                f"vectors must have shape (n, {'D' if length is None else length}), one row per example, got shape "
                f"{rows.shape}"
            )
        require_room(self.added + len(rows), self.num_examples)
        if self.total is None:
            self.total = np.zeros(rows.shape[1], dtype=np.int64)
        self.total += clipped_to_grid(rows, self.norm_bound, self.grid).sum(axis=0)
        self.added += len(rows)


def require_room(added: int, num_examples: int) -> None:
    """Require that no more examples are added than were stated."""
    if added > num_examples:
        raise ValueError(f"{added} examples were added, but num_examples={num_examples} was stated")


def grid_for(norm_bound: float, terms: int) -> float:
    """The grid on which ``terms`` vectors of at most this norm add up without rounding: a power of two.

    Example:
        >>> grid_for(1.0, 1000) == 2.0**-39
        True
    """
    bits = min(_FINENESS, _BITS - terms.bit_length())
    return math.ldexp(1.0, math.frexp(norm_bound)[1] - bits)  # frexp: norm_bound <= 2 ** exponent


def clipped_to_grid(vectors: NDArray[Any], norm_bound: float, grid: float) -> NDArray[np.int64]:
    """Vectors (..., D) clipped to an L2 norm of ``norm_bound``, in multiples of ``grid``, rounded towards zero.

    Guarantee: the norm of each result is at most ``norm_bound``. A vector whose norm is not finite becomes zero.

    Example:
        >>> (clipped_to_grid(np.array([[3.0, 4.0], [np.inf, 0.0]]), 2.5, 0.5) * 0.5).tolist()
        [[1.0, 1.5], [0.0, 0.0]]
    """
    # NumPy adds up each row of contiguous numbers by itself; in other layouts, a norm may depend on the number of rows
    rows = np.array(vectors, dtype=np.float64, order="C")
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.sqrt(np.square(rows).sum(axis=-1))
    rows[~np.isfinite(norms)] = 0.0
    limit = norm_bound * (1.0 - _MARGIN)
    safe = np.where(np.isfinite(norms), norms, 0.0)
    factors = np.where(safe > limit, limit / np.maximum(safe, limit), 1.0)
    whole: NDArray[np.int64] = np.trunc(rows * factors[..., None] / grid).astype(np.int64)
    return whole


def require_bound(**bounds: float) -> None:
    """Refuse a bound whose square could overflow or underflow.

    Raises:
        ValueError: One is not positive, or too small or too large.
    """
    checks.positive(**bounds)
    for name, bound in bounds.items():
        if not _BOUNDS[0] < bound < _BOUNDS[1]:
            raise ValueError(f"{name} must lie between {_BOUNDS[0]:g} and {_BOUNDS[1]:g}, got {bound:g}")
