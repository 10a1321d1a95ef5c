"""Disjoint parts of a data set, one for each teacher."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mechanisms.rng import SecureGenerator
from monitors import checks
from monitors.errors import DataError


class Partition:
    """Assigns each row of a data set to exactly one part.

    Each row draws its part independently and uniformly. So a row that is added or removed changes one part and leaves
    all others as they are, which dealing out rows in turn would not. Sizes of parts vary, and are private.

    Args:
        owners: The part of each row, integers in [0, ``parts``).
        parts: Number of parts, at least 2.

    Raises:
        ValueError: ``parts`` is below 2, or an owner is out of range.

    Example:
        >>> partition = Partition.draw(100, 4)
        >>> sum(len(partition.rows(part)) for part in range(4))
        100
    """

    def __init__(self, owners: ArrayLike, parts: int) -> None:
        checks.positive_int(parts=parts)
        if parts < 2:
            raise ValueError(f"parts must be at least 2, got {parts}: a single teacher sees every example")
        found = np.asarray(owners)
        if (
            found.ndim != 1
            or found.dtype.kind not in "iu"
            or (len(found) and not 0 <= found.min() <= found.max() < parts)
        ):
            raise ValueError(f"owners must be a vector of integers in [0, {parts}), one per row")
        self.owners: NDArray[np.int64] = found.astype(np.int64)
        self.parts = int(parts)

    @classmethod
    def draw(cls, num_examples: int, parts: int, seed: int | None = 0) -> Partition:
        """A random partition; the parts are secret unless ``seed`` is given (tests only)."""
        checks.positive_int(num_examples=num_examples, parts=parts)
        drawn = SecureGenerator(seed, purpose="parts of the data").integers(parts, num_examples)
        return cls(drawn, parts)

    def rows(self, part: int) -> NDArray[np.int64]:
        """The rows of a part, in ascending order."""
        return np.flatnonzero(self.owners == part)

    def __len__(self) -> int:
        return self.parts

    def __repr__(self) -> str:
        return f"Partition({len(self.owners):,} rows in {self.parts} parts)"


def require_disjoint(rows: Sequence[ArrayLike]) -> None:
    """Refuse parts that share rows.

    Raises:
        DataError: A row belongs to two parts, which are named; or rows are not numbers from 0 on.
    """
    owner: dict[int, int] = {}
    for part, members in enumerate(rows):
        numbers = np.asarray(members)
        if numbers.ndim != 1 or (len(numbers) and (numbers.dtype.kind not in "iu" or numbers.min() < 0)):
            raise DataError(
                f"the rows of teacher {part} must be a vector of whole numbers, at least 0, got {members!r}"
            )
        for row in numbers.tolist():
            if row in owner:
                raise DataError(
                    f"teachers {owner[row]} and {part} were both trained on row {row}; one example would change the "
                    "votes of both. Train teachers on disjoint parts"
                )
            owner[row] = part
