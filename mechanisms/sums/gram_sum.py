"""The sum of clipped Gram matrices, ``x'x`` for one matrix ``x`` per example, whose sensitivity holds exactly."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mechanisms.sums.triangle import PAIR, SQUARED_NORM, matrix_of, weighted_triangle
from mechanisms.sums.vector_sum import require_bound, require_room
from monitors import checks

#: Bits of the root of a clipped Frobenius norm, at most and at least; those of the sum of all examples, unweighted.
_MOST_BITS, _FEWEST_BITS, _BITS = 20, 10, 56
#: Relative margin between clipped norms and their bound: rounding may move a norm, and one above its bound is halved.
_MARGIN = 1e-3
#: Integers below this are exact in float64, and numbers that are held at once.
_EXACT, _NUMBERS = 2**53, 1 << 22
#: Smallest exponent of two by which an example is scaled: smaller numbers round to zero for every bound.
_LOWEST = -500


class ClippedGramSum:
    """Adds up ``x'x`` over the examples, where ``x`` has one row per position; each is clipped by its Frobenius norm.

    Guarantees: adding or removing one example moves ``total`` by at most ``norm_bound`` in L2 norm, exactly. The
    matrix of an example is rounded towards zero to integers ``q``; if the Frobenius norm of ``q'q``, computed from the
    integers, still exceeds the bound, ``q`` is halved until it does not. Products and sums of integers are exact. An
    example with a number whose square is not finite contributes exactly zero.

    Sensitivity: let ``M`` be the bound on the Frobenius norm of ``q'q``. ``total`` holds 12 times its entries on the
    diagonal and 17 times those above it. The squared norm of these is at most ``max(12^2, 17^2 / 2) M^2 = 144.5 M^2``:
    ``norm_bound`` is its root.

    Args:
        gram_bound: Largest Frobenius norm of ``x'x``, positive. It must not depend on the data.
        num_examples: Number of examples that will be added, which is public.

    Attributes:
        norm_bound: L2 sensitivity of ``total``.
        grid: 1.0: ``total`` counts in whole numbers.
        added: Number of examples that were added.

    Example:
        >>> grams = ClippedGramSum(gram_bound=2.0, num_examples=2)
        >>> grams.add([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 9.0], [0.0, 0.0]]])
        >>> grams.unpacked(grams.total).round(2).tolist()
        [[1.0, 0.0], [0.0, 3.0]]
    """

    grid = 1.0

    def __init__(self, gram_bound: float, num_examples: int) -> None:
        require_bound(gram_bound=gram_bound)
        checks.positive_int(num_examples=num_examples)
        bits = min(_MOST_BITS, (_BITS - int(num_examples).bit_length()) // 2)
        if bits < _FEWEST_BITS:
            raise ValueError(f"num_examples must be below 2**{_BITS - 2 * _FEWEST_BITS}, got {num_examples}")
        self.gram_bound, self.num_examples = float(gram_bound), int(num_examples)
        self._largest = float(1 << 2 * bits)
        self.norm_bound = math.nextafter(math.sqrt(SQUARED_NORM), math.inf) * self._largest
        self.added = 0
        self._sum: NDArray[np.int64] | None = None

    def __repr__(self) -> str:
        return f"ClippedGramSum(gram_bound={self.gram_bound:g}, {self.added:,} of {self.num_examples:,} examples)"

    def add(self, matrices: ArrayLike) -> None:
        """Clip and add the Gram matrices of ``matrices``, shape (n, S, D): S rows per example.

        Raises:
            ValueError: The shape is wrong, or there are more examples than ``num_examples``.
        """
        rows = np.asarray(matrices, dtype=np.float64, order="C")
        size = None if self._sum is None else len(self._sum)
        if rows.ndim != 3 or 0 in rows.shape[1:] or size not in (None, rows.shape[2]):
            raise ValueError(f"matrices must have shape (n, S, {'D' if size is None else size}), got {rows.shape}")
        require_room(self.added + len(rows), self.num_examples)
        if self._sum is None:
            self._sum = np.zeros((rows.shape[2], rows.shape[2]), dtype=np.int64)
        at_once = self._at_once(*rows.shape[1:])
        for start in range(0, len(rows), at_once):
            integers = self._integers(rows[start : start + at_once])
            flat = integers.reshape(-1, rows.shape[2])
            products = (flat.T @ flat).astype(np.int64)
            self.added += len(integers)  # first: if a call is interrupted and repeated, no example may be added twice
            self._sum += products

    @property
    def total(self) -> NDArray[np.int64] | None:
        """The weighted sum, shape (D (D + 1) / 2,), without noise; None before the first ``add``."""
        return None if self._sum is None else weighted_triangle(self._sum)

    def unpacked(self, total: ArrayLike) -> NDArray[np.float64]:
        """The sum of ``x'x`` (D, D) in the units of the data, of numbers like ``total``, with or without noise.

        Raises:
            ValueError: No example was added, or the number of numbers is wrong.
        """
        numbers = np.asarray(total, dtype=np.float64)
        size = 0 if self._sum is None else len(self._sum)
        if numbers.shape != (size * (size + 1) // 2,) or not size:
            raise ValueError(f"total must have shape ({size * (size + 1) // 2},), got {numbers.shape}")
        return matrix_of(numbers, size) * (self.gram_bound / self._largest)

    @property
    def pair_noise(self) -> float:
        """Standard deviation of the noise in an entry off the diagonal, for a noise multiplier of one."""
        return self.norm_bound / PAIR * (self.gram_bound / self._largest)

    def _at_once(self, positions: int, size: int) -> int:
        # The trace of a Gram matrix, which bounds each partial sum of its entries, is at most its Frobenius norm times
        # the root of its rank.
        exact = _EXACT / (self._largest * math.sqrt(min(positions, size)))
        return max(1, int(min(exact, _NUMBERS / (positions * size))))

    def _integers(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Clipped examples in multiples of ``sqrt(gram_bound / _largest)``, rounded towards zero; zero if not finite.

        The factor of an example must not depend on the others, not even in its last bit. It is therefore computed from
        integers so small that sums of their products are exact, and thus the same in any order.
        """
        bits = (_EXACT.bit_length() - 1 - max(rows.shape[1:]).bit_length()) // 2
        with np.errstate(over="ignore"):
            highest = np.abs(rows).max(axis=(1, 2), keepdims=True)
            finite = np.isfinite(np.square(highest))
        exponents = np.frexp(np.where(finite, highest, 1.0))[1]
        scale = np.ldexp(1.0, bits - np.maximum(exponents, _LOWEST))
        coarse = np.trunc(np.where(finite, rows, 0.0) * scale)
        unit = math.sqrt(self.gram_bound / self._largest)
        norms = np.maximum(_gram_norms(coarse), 1.0)
        factors = np.minimum(1.0 / (scale * unit), np.sqrt(self._largest * (1.0 - _MARGIN) / norms))
        integers: NDArray[np.float64] = np.trunc(coarse * factors)
        while (above := _gram_norms(integers) > self._largest * (1.0 - 1e-9)).any():
            integers = np.where(above, np.trunc(integers / 2), integers)
        return integers


def _gram_norms(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Frobenius norms of the Gram matrices of (n, S, D), shape (n, 1, 1); the smaller product has the same norm."""
    other = rows.transpose(0, 2, 1)
    products = rows @ other if rows.shape[1] < rows.shape[2] else other @ rows
    norms: NDArray[np.float64] = np.sqrt(np.square(products.reshape(len(rows), -1)).sum(axis=1))
    return norms.reshape(-1, 1, 1)
