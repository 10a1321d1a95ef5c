"""Private answers to queries about the data: counts, histograms and other numbers, with Laplace noise."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mechanisms.answers import record_answer
from mechanisms.rng import SecureGenerator
from monitors import checks
from monitors.events import LaplaceEvent
from monitors.ledger import Ledger

#: The grid of the answers is finer than the noise scale by a factor of at least 2^40.
_FINENESS = 40
_SCALES = (1e-200, 1e200)


class LaplaceMechanism:
    """Adds Laplace noise to numbers, and records the cost on a ledger before the answer is computed.

    Guarantees: each answer is ``epsilon``-private, even against floating-point attacks. Values are rounded to a grid
    whose spacing is a power of two; the noise is exact Laplace noise rounded to that grid, drawn by integer arithmetic;
    and the scale compensates for the sensitivity that the rounding adds.

    Args:
        epsilon: Cost of one answer, positive.
        sensitivity: L1 distance by which the numbers of one answer can move in total if one example is added or
            removed, positive. It must follow from the query, never from the data.
        seed: 0 for secret noise. Any other integer makes it reproducible and voids the guarantee (tests only).

    Example:
        >>> ledger = Ledger()
        >>> incomes = np.array([20.0, 35.0, 1000.0])
        >>> mechanism = LaplaceMechanism(epsilon=0.5, sensitivity=100.0)
        >>> total = mechanism.release(incomes.clip(0, 100).sum(), ledger)
        >>> ledger
        Ledger(1 releases in 1 rows)

    References:
        Dwork et al. 2006 (the mechanism); Mironov 2012 (the attack); Canonne, Kamath and Steinke 2020, algorithm 2 (the
        sampling).
    """

    def __init__(self, epsilon: float, sensitivity: float = 1.0, seed: int | None = 0) -> None:
        checks.positive(epsilon=epsilon, sensitivity=sensitivity)
        if not _SCALES[0] < sensitivity / epsilon < _SCALES[1]:
            raise ValueError(
                f"the noise scale sensitivity / epsilon must lie between {_SCALES[0]:g} and {_SCALES[1]:g}, got "
                f"{sensitivity:g} / {epsilon:g}"
            )
        self.epsilon = float(epsilon)
        self.sensitivity = float(sensitivity)
        self.generator = SecureGenerator(seed, purpose="query")

    def __repr__(self) -> str:
        return f"{type(self).__name__}(epsilon={self.epsilon:g}, sensitivity={self.sensitivity:g})"

    @property
    def scale(self) -> float:
        """Scale of the noise; its standard deviation is ``sqrt(2)`` times the scale."""
        return self.sensitivity / self.epsilon

    @property
    def event(self) -> LaplaceEvent:
        """Cost of one answer."""
        return LaplaceEvent(1.0 / self.epsilon)

    def release(self, values: ArrayLike, ledger: Ledger) -> float | NDArray[np.float64]:
        """The values with noise: a number if ``values`` is one, else an array of the same shape.

        Args:
            values: A number, or an array of numbers that together form one answer; finite.
            ledger: Ledger on which the cost is recorded. Pass it also to ``DPModel(..., ledger=...)`` if the model is
                trained on the same data.

        Raises:
            ValueError: A value is not a finite number. Nothing was recorded.
        """
        given = np.asarray(values, dtype=np.float64)
        if given.size == 0 or not np.isfinite(given).all():
            raise ValueError("values must contain at least one number, all finite; clip or fill them before the query")
        record_answer(ledger, self.event, self.generator)
        grid = 2.0 ** (math.floor(math.log2(self.scale)) - _FINENESS)
        # Rounding can move each number by one more grid point.
        moved = Fraction(self.sensitivity) / Fraction(grid) + given.size
        scale = math.ceil(moved * Fraction(self.event.noise_multiplier))
        noisy = [
            float((round(Fraction(value) / Fraction(grid)) + self._noise(scale)) * Fraction(grid))
            for value in given.ravel().tolist()
        ]
        return noisy[0] if given.ndim == 0 else np.array(noisy).reshape(given.shape)

    def _noise(self, scale: int) -> int:
        """Laplace noise of ``scale`` grid points, rounded to the nearest grid point, from the exact distribution.

        It is zero with probability ``1 - exp(-1 / (2 scale))``. Otherwise, its size minus one is geometric with ratio
        ``exp(-1 / scale)``, and its sign is a fair coin.
        """
        if not self._exponential_coin(1, 2 * scale):
            return 0
        while True:
            low = self._below(scale)
            if self._exponential_coin(low, scale):
                break
        high = 0
        while self._exponential_coin(1, 1):
            high += 1
        size = 1 + low + scale * high
        return size if self._below(2) else -size

    def _exponential_coin(self, numerator: int, denominator: int) -> bool:
        """True with probability ``exp(-numerator / denominator)``, for a ratio of at most 1."""
        count = 1
        while self._below(denominator * count) < numerator:
            count += 1
        return count % 2 == 1

    def _below(self, high: int) -> int:
        """A uniform integer in [0, high)."""
        words = -(-high.bit_length() // 64)
        excess = 64 * words - high.bit_length()
        while True:
            drawn = int.from_bytes(self.generator.words(words).tobytes(), "little") >> excess
            if drawn < high:
                return drawn


class CountingQuery(LaplaceMechanism):
    """Private counts: of the examples with a property, or of the examples in each class; each example counts once.

    Args:
        epsilon: Cost of one answer, positive.
        seed: 0 for secret noise. Any other integer makes it reproducible and voids the guarantee (tests only).

    Example:
        >>> ages, ledger = np.array([31, 64, 27, 45]), Ledger()
        >>> query = CountingQuery(epsilon=0.1)
        >>> answer = query.count(ages > 40, ledger)
        >>> isinstance(answer, int), query.event
        (True, LaplaceEvent(noise_multiplier=10.0))
    """

    def __init__(self, epsilon: float, seed: int | None = 0) -> None:
        super().__init__(epsilon, sensitivity=1.0, seed=seed)

    def count(self, has_property: ArrayLike, ledger: Ledger) -> int:
        """The noisy number of examples with the property; may be negative.

        Args:
            has_property: One boolean per example, shape (N,).
            ledger: Ledger on which the cost is recorded.
        """
        flags = np.asarray(has_property)
        if flags.ndim != 1 or flags.dtype != np.bool_:
            raise ValueError(
                f"has_property must be one boolean per example, shape (N,), got shape {flags.shape} of {flags.dtype}"
            )
        return round(float(self.release(float(flags.sum()), ledger)))

    def histogram(self, classes: ArrayLike, num_classes: int, ledger: Ledger) -> NDArray[np.int64]:
        """The noisy number of examples in each class, shape (num_classes,); costs as much as one count.

        Args:
            classes: One integer per example, shape (N,); those outside of [0, num_classes) are not counted.
            num_classes: Number of classes; it must be known without the data.
            ledger: Ledger on which the cost is recorded.
        """
        checks.positive_int(num_classes=num_classes)
        given = np.asarray(classes)
        if given.ndim != 1 or not np.issubdtype(given.dtype, np.integer):
            raise ValueError(
                f"classes must be one integer per example, shape (N,), got shape {given.shape} of {given.dtype}"
            )
        inside = given[(given >= 0) & (given < num_classes)]
        counts = np.bincount(inside, minlength=num_classes).astype(np.float64)
        return np.rint(self.release(counts, ledger)).astype(np.int64)
