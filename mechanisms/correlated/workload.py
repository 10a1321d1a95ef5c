"""What an optimizer makes of the noise of each step: the weights by which correlated noise is optimised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from monitors import checks

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Workload:
    """A squared error that noise ``C^-1 z`` causes: ``sum_s importance_s (C^-1 signal)_s^2``.

    Args:
        signal: Shape (n,).
        importance: Weight of each squared entry, shape (n,).
    """

    signal: Floats
    importance: Floats

    @classmethod
    def of_last_iterate(
        cls,
        rates: Sequence[float],
        *,
        momentum: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> Workload:
        """The noise in the last weights of SGD (``torch.optim.SGD``), for gradients that do not depend on the weights.

        Args:
            rates: Learning rate of each step, shape (n,).
            momentum: In [0, 1).
            dampening: Of the momentum.
            nesterov: Whether the momentum is Nesterov's.
            weight_decay: L2 penalty.

        Example:
            >>> Workload.of_last_iterate([1.0, 1.0, 0.5]).signal
            array([0.5, 1. , 1. ])
        """
        checks.positive_int(steps=len(rates))
        weights = np.zeros(len(rates))
        of_weights, of_velocity = 1.0, 0.0
        for step in range(len(rates) - 1, -1, -1):
            moved = rates[step] * of_weights
            direct = moved if nesterov or not momentum else 0.0
            velocity = of_velocity + (momentum * moved if nesterov else moved) if momentum else 0.0
            weights[step] = direct + (1.0 - dampening) * velocity
            of_velocity = momentum * velocity
            of_weights -= weight_decay * weights[step]
        return cls(weights[::-1].copy(), np.ones(len(rates)))

    @classmethod
    def of_prefix_sums(cls, steps: int) -> Workload:
        """The mean squared error of all sums of the first k gradients, if nothing is known about the optimizer.

        Example:
            >>> Workload.of_prefix_sums(2).importance
            array([1. , 0.5])
        """
        checks.positive_int(steps=steps)
        return cls(np.ones(steps), 1.0 - np.arange(steps) / steps)

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.signal)
