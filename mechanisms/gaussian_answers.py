"""Answers to many queries about private data: vectors on a grid, each with Gaussian noise on the same grid."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mechanisms.integer_noise import normal_integers
from mechanisms.rng import SecureGenerator
from monitors import checks
from monitors.events import GaussianEvent

#: Answers and noise are below this many multiples of the grid.
_MOST = 2.0**61
#: Largest noise in standard deviations; Box-Muller of 64-bit words stays below it.
_LARGEST_DRAW = 10.0


class GaussianAnswers:
    """Adds Gaussian noise to vectors of whole multiples of a grid.

    Answer and noise are whole multiples of the same grid, so the last bits of an answer tell nothing about the data.
    The caller charges ``event`` for each vector before the noise is drawn.

    Args:
        noise_multiplier: Standard deviation of the noise over the L2 sensitivity of a vector, positive.
        sensitivity: L2 sensitivity of a vector, positive.
        seed: 0 for secret noise. Any other integer makes it reproducible and voids the guarantee (tests only).

    Example:
        >>> answers = GaussianAnswers(noise_multiplier=2.0, sensitivity=1.0, seed=1)
        >>> answers.event, answers.deviation
        (GaussianEvent(noise_multiplier=2.0), 2.0)
        >>> answers.noisy(np.zeros((3, 2), dtype=np.int64), grid=2.0**-20).shape
        (3, 2)
    """

    def __init__(self, noise_multiplier: float, sensitivity: float, seed: int | None = 0) -> None:
        checks.positive(noise_multiplier=noise_multiplier, sensitivity=sensitivity)
        self.noise_multiplier, self.sensitivity = float(noise_multiplier), float(sensitivity)
        self.generator = SecureGenerator(seed, purpose="answers to queries")

    def __repr__(self) -> str:
        return f"GaussianAnswers(noise_multiplier={self.noise_multiplier:g}, sensitivity={self.sensitivity:g})"

    @property
    def settings(self) -> str:
        """Everything that the distribution of an answer depends on, exactly."""
        return f"{self.noise_multiplier!r} {self.sensitivity!r}"

    @property
    def event(self) -> GaussianEvent:
        """Cost of one vector."""
        return GaussianEvent(self.noise_multiplier)

    @property
    def deviation(self) -> float:
        """Standard deviation of the noise."""
        return self.noise_multiplier * self.sensitivity

    def require_grid(self, grid: float) -> None:
        """Refuse a grid that is too fine for this noise, before anything is charged.

        Raises:
            ValueError: The noise would not fit into 64 bits.
        """
        most = _MOST / 2 / _LARGEST_DRAW * grid
        if not self.deviation < most:
            raise ValueError(
                f"noise of standard deviation {self.deviation:g} does not fit a grid of {grid:g}; use a "
                f"noise_multiplier below {most / self.sensitivity:.3g}"
            )

    def noisy(self, multiples: NDArray[np.int64], grid: float) -> NDArray[np.float64]:
        """The vectors with noise.

        Args:
            multiples: Vectors of any shape, in multiples of ``grid``, below 2**60.
            grid: The grid.

        Raises:
            ValueError: See ``require_grid``.
        """
        self.require_grid(grid)
        drawn = normal_integers(self.generator, math.prod(multiples.shape), self.deviation / grid)
        found: NDArray[np.float64] = (multiples + drawn.reshape(multiples.shape)).astype(np.float64) * grid
        return found
