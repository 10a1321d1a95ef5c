"""Private sums of vectors about the data, with Gaussian noise."""

from __future__ import annotations

from fractions import Fraction
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mechanisms.answers import TRUE_SIZE, record_answer, require_ledger
from mechanisms.integer_noise import normal_integers
from mechanisms.rng import SecureGenerator
from monitors import checks
from monitors.events import GaussianEvent
from monitors.ledger import Ledger

_MULTIPLIERS = (1e-100, 1e100)

#: Numbers up to this size are added as 64-bit integers, and larger ones one by one.
_INT64 = float(2**61)


class ExactSum(Protocol):
    """A sum over all examples in whole multiples of a grid, such as ``ClippedVectorSum``.

    Attributes:
        norm_bound: L2 sensitivity to adding or removing one example.
        grid: The grid.
        num_examples: Number of examples, which is public.
        added: Number of examples that were added.
    """

    norm_bound: float
    grid: float
    num_examples: int
    added: int

    @property
    def total(self) -> NDArray[np.int64] | None:
        """The integers (D,), in multiples of ``grid``; None before the first example."""


class GaussianMechanism:
    """Adds Gaussian noise to sums of clipped vectors, and records the cost on a ledger before the noise is drawn.

    The standard deviation of the noise is ``noise_multiplier`` times the norm bound of the sum. Sum and noise are whole
    multiples of the grid of the sum, so the last bits of an answer tell nothing about the data.

    Args:
        noise_multiplier: Standard deviation of the noise over the L2 sensitivity, positive.
        seed: 0 for secret noise. Any other integer makes it reproducible and voids the guarantee (tests only).

    Example:
        >>> from mechanisms import ClippedVectorSum
        >>> rows, ledger = np.array([[3.0, 4.0], [1.0, 0.0]]), Ledger()
        >>> clipped = ClippedVectorSum(norm_bound=5.0, num_examples=len(rows))
        >>> clipped.add(rows)
        >>> noisy = GaussianMechanism(noise_multiplier=2.0).release(clipped, ledger)
        >>> noisy.shape, ledger.rows
        ((2,), ((GaussianEvent(noise_multiplier=2.0), 1),))
    """

    def __init__(self, noise_multiplier: float, seed: int | None = 0) -> None:
        checks.positive(noise_multiplier=noise_multiplier)
        if not _MULTIPLIERS[0] < noise_multiplier < _MULTIPLIERS[1]:
            raise ValueError(
                f"noise_multiplier must lie between {_MULTIPLIERS[0]:g} and {_MULTIPLIERS[1]:g}, got "
                f"{noise_multiplier:g}"
            )
        self.noise_multiplier = float(noise_multiplier)
        self.generator = SecureGenerator(seed, purpose="vector query")

    def __repr__(self) -> str:
        return f"GaussianMechanism(noise_multiplier={self.noise_multiplier:g})"

    @property
    def event(self) -> GaussianEvent:
        """Cost of one answer."""
        return GaussianEvent(self.noise_multiplier)

    def release(self, clipped: ExactSum, ledger: Ledger) -> NDArray[np.float64]:
        """The sum with noise, shape (D,).

        Args:
            clipped: The sum over all examples; complete.
            ledger: Ledger on which the cost is recorded. Pass it also to ``DPModel(..., ledger=...)`` if the model is
                trained on the same data.

        Raises:
            ValueError: Examples are missing, or ``ledger`` is not a ledger. Nothing was recorded.
        """
        require_ledger(ledger)
        total = clipped.total
        if total is None or clipped.added != clipped.num_examples:
            raise ValueError(
                f"{clipped.num_examples} examples were stated, but {clipped.added} were added; add all of them before "
                "the release"
            )
        record_answer(ledger, self.event, self.generator)
        ledger.add_note(TRUE_SIZE)
        deviation = self.noise_multiplier * clipped.norm_bound / clipped.grid
        noise = normal_integers(self.generator, len(total), deviation)
        fits = noise.dtype == np.int64 and max(np.abs(noise).max(), np.abs(total).max()) < _INT64
        if clipped.grid == 1.0 and fits:
            integers: NDArray[np.int64] = total + noise
            return integers.astype(np.float64)
        noisy = [whole + int(drawn) for whole, drawn in zip(total.tolist(), noise.tolist(), strict=True)]
        return np.array([float(multiple * Fraction(clipped.grid)) for multiple in noisy])
