"""Now and then: whether the clipped sum of a real batch is the sum of those of its halves."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mechanisms.clipping import ClipMechanism
from mechanisms.engines.base import Engine
from mechanisms.engines.batch import Batch
from mechanisms.engines.losses import LossFunction
from mechanisms.engines.undisturbed import seed_generators, undisturbed, without_dropout
from monitors.errors import UnprotectedUpdateError

#: After the first batch one in so many is looked at, and of that so many examples.
LOOKED_AT_EVERY = 100
LOOKED_AT_EXAMPLES = 64

#: Examples on which it is seen whether equal passes give equal sums.
_STEADY_EXAMPLES = 8

#: What rounding may amount to, over the norm bound; for reduced precision also by the square root of the examples.
_ROUNDING = 0.02


class Additivity:
    """Holds the privacy claim against the batches of a training.

    One example moves the sum by its own clipped gradient alone if, and only if, a batch adds up from its parts.
    Networks are tried on a few examples before a training. What ties examples together only in larger batches, only for
    certain examples, or only later on is found here, before the step is taken: the first batch is looked at as it is,
    later ones now and then. Networks and losses that draw at random otherwise than by dropout layers are passed over:
    there equal passes differ whatever they do.

    Args:
        network: In training mode.
        loss_fn: The user's loss.
        engine: An engine that passes several units through the network at a time; others are passed over.
        clip: A started clip mechanism.
    """

    def __init__(self, network: nn.Module, loss_fn: LossFunction, engine: Engine, clip: ClipMechanism) -> None:
        self._network, self._loss_fn, self._engine, self._clip = network, loss_fn, engine, clip
        self._batches = 0
        self._steady = True

    def __call__(self, batch: Batch) -> None:
        """Call with each batch before its step.

        Raises:
            UnprotectedUpdateError: The sum of the batch is not that of its halves.
        """
        if batch.size < 2 or self._engine.sees_examples_alone:
            return
        number, self._batches = self._batches, self._batches + 1
        if number % LOOKED_AT_EVERY or not self._steady:
            return
        with undisturbed(self._network), without_dropout(self._network):
            if number == 0:
                self._steady = self._is_steady(batch.select(slice(_STEADY_EXAMPLES)))
            if self._steady:
                self._require_additive(batch if number == 0 else batch.select(slice(LOOKED_AT_EXAMPLES)))

    def _require_additive(self, batch: Batch) -> None:
        difference = self._sum(batch)
        for half in _halves(batch):
            difference -= self._sum(half)
        bound, off = self._clip.norm_bound, float(difference.norm())
        if not off <= self._rounding(batch) * bound:
            raise UnprotectedUpdateError(
                f"the clipped sum of a batch of {batch.size} examples and the sums of its halves differ by "
                f"{off / bound:.3g} norm bounds: the network or the loss ties the examples of a batch together, which "
                "showed with this batch and not before, so that one example could move the sum by more than the ledger "
                "accounts for. The step was not taken. Find what looks at several examples, or use engine='vmap' or "
                "engine='loop', which pass each example through by itself"
            )

    def _sum(self, batch: Batch, seed: int = 0) -> Tensor:
        seed_generators(self._network, seed)
        return self._engine.clipped_sum(self._network, self._loss_fn, batch, self._clip).flat_grad

    def _is_steady(self, batch: Batch) -> bool:
        difference = self._sum(batch, seed=0) - self._sum(batch, seed=1)
        return float(difference.norm()) <= self._rounding(batch) * self._clip.norm_bound

    def _rounding(self, batch: Batch) -> float:
        """Reduced precision rounds an example by where it lies among the others."""
        narrow = any(value.dtype in (torch.float16, torch.bfloat16) for value in self._network.parameters())
        coarse = narrow or getattr(self._engine, "precision", "fp32") != "fp32"
        return _ROUNDING * (1.0 + coarse * math.sqrt(batch.size))


def _halves(batch: Batch) -> list[Batch]:
    """Two parts without a unit in common."""
    if batch.group_ids is None:
        return [batch.select(slice(batch.size // 2)), batch.select(slice(batch.size // 2, None))]
    first = batch.group_ids < batch.num_units // 2
    return [batch.select(first), batch.select(~first)]
