"""A symmetric matrix as the numbers on and above its diagonal, weighted so that noise of one size suits all of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: Weights of the entries above the diagonal and on it. 17 / 12 is nearly the square root of two, so the norm of the
#: weighted triangle is nearly proportional to that of the whole matrix, which counts each pair twice.
PAIR, SQUARE = 17, 12
#: Squared norm of the weighted triangle of a symmetric matrix of Frobenius norm one, at most.
SQUARED_NORM = max(SQUARE**2, PAIR**2 / 2)


def weighted_triangle(matrix: NDArray[np.int64]) -> NDArray[np.int64]:
    """The weighted entries of a symmetric matrix (D, D), shape (D (D + 1) / 2,), row by row."""
    rows, columns = np.triu_indices(len(matrix))
    return matrix[rows, columns] * np.where(rows == columns, SQUARE, PAIR)


def matrix_of(triangle: ArrayLike, size: int) -> NDArray[np.float64]:
    """The symmetric matrix (``size``, ``size``) with this weighted triangle, in float64."""
    rows, columns = np.triu_indices(size)
    matrix = np.empty((size, size))
    matrix[rows, columns] = matrix[columns, rows] = np.asarray(triangle) / np.where(rows == columns, SQUARE, PAIR)
    return matrix
