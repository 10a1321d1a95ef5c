"""The tally of a clipped sum: the loss of the batch, and the number of units that were left out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mechanisms.engines.host_copy import HostCopy


class Tally:
    """Mean loss of the drawn examples, and number of units left out, on their way to the host; private.

    On a GPU, the first reading waits until the passes are done.

    Args:
        examples: Number of drawn examples.
        parts: What ``counts`` gave for each chunk.

    Example:
        >>> tally = Tally(2, [HostCopy(torch.tensor([3.0, 1.0]))])
        >>> tally.loss, tally.rejected
        (1.5, 1)
    """

    def __init__(self, examples: int, parts: Sequence[HostCopy] = ()) -> None:
        self._examples = examples
        self._parts = tuple(parts)
        self._known: tuple[float, int] | None = None

    @classmethod
    def of(cls, loss: float = float("nan"), rejected: int = 0) -> Tally:
        """A tally whose figures are known."""
        tally = cls(0)
        tally._known = float(loss), int(rejected)
        return tally

    @property
    def loss(self) -> float:
        """Mean loss of the drawn examples; NaN for none."""
        return self.read()[0]

    @property
    def rejected(self) -> int:
        """Number of units left out because their gradient was not finite."""
        return self.read()[1]

    @property
    def is_late(self) -> bool:
        """Whether the figures come from a GPU and have not been read yet."""
        return self._known is None and any(part.is_late for part in self._parts)

    def read(self) -> tuple[float, int]:
        """Loss and number of units left out."""
        if self._known is None:
            losses, rejected = map(sum, zip((0.0, 0.0), *(part.read() for part in self._parts), strict=True))
            self._known = losses / self._examples if self._examples else float("nan"), int(rejected)
            self._parts = ()
        return self._known


def counts(norms: Tensor, loss_sum: Tensor, real: Tensor | None = None) -> Tensor:
    """The sum of the losses, and the number of units whose gradient is not finite: float64, shape (2,).

    Args:
        norms: Shape (units, blocks).
        loss_sum: Sum of the losses, without those of fillers.
        real: See ``Batch``.
    """
    broken = ~torch.isfinite(norms).all(dim=1)
    rejected = broken.sum() if real is None else (broken & real).sum()
    return torch.stack((loss_sum.double(), rejected.double()))
