"""One unit at a time: the readable reference that every other engine is held to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from mechanisms.clipping import ClipMechanism
from mechanisms.engines.base import ENGINES, Engine, PartialSum, clip_rows
from mechanisms.engines.batch import Batch, call_network
from mechanisms.engines.losses import ExampleLosses, LossFunction
from mechanisms.engines.parameters import FlatLayout, trainable_parameters
from mechanisms.units import ClippedUnit


@ENGINES.register("loop")
class LoopEngine(Engine):
    """One forward and backward pass per example (or per micro-batch group), with plain autograd.

    Takes any network that PyTorch can differentiate; memory is that of one unit's pass plus one gradient.
    """

    name: ClassVar[str] = "loop"
    sees_examples_alone: ClassVar[bool] = True

    @classmethod
    def refuses(cls, network: nn.Module, loss_fn: LossFunction, unit: ClippedUnit, example: Batch) -> str | None:
        """Never refuses."""
        del network, loss_fn, unit, example
        return None

    def partial_sum(
        self,
        network: nn.Module,
        losses: ExampleLosses,
        batch: Batch,
        clip: ClipMechanism,
        layout: FlatLayout,
        total: Tensor,
    ) -> PartialSum:
        """Clip unit after unit and add them up."""
        loss_sum, norms = total.new_zeros(()), []
        for index in range(batch.num_units):
            gradient, loss = self._unit_gradient(network, losses, _members(batch, index), layout)
            clipped, norm = clip_rows(gradient.to(total.dtype).unsqueeze(0), clip, layout)
            total += clipped
            loss_sum += loss
            norms.append(norm)
        return PartialSum(torch.cat(norms), loss_sum)

    def _unit_gradient(
        self, network: nn.Module, losses: ExampleLosses, members: Batch, layout: FlatLayout
    ) -> tuple[Tensor, Tensor]:
        parameters = list(trainable_parameters(network).values())
        like = layout.zeros()
        if not members.size:
            return like.new_zeros(layout.size), like
        gradients: Sequence[Tensor | None] = [None] * len(parameters)
        with torch.enable_grad():
            loss = losses(call_network(network, members.x), members.y).sum()
            if loss.requires_grad:
                gradients = torch.autograd.grad(loss / self.unit.group_size, parameters, allow_unused=True)
        return layout.flatten(gradients, like), loss.detach().to(like.dtype)


def _members(batch: Batch, unit: int) -> Batch:
    if batch.group_ids is None:
        return batch.select(slice(unit, unit + 1))
    return batch.select(torch.nonzero(batch.group_ids == unit).flatten())
