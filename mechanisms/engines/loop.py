"""One unit at a time: the readable reference that all other engines must match."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from mechanisms.clipping import ClipMechanism, Fixed
from mechanisms.engines.base import ENGINES, Engine, PartialSum, clip_rows
from mechanisms.engines.batch import Batch, call_network, map_tensors, own_copy
from mechanisms.engines.host_copy import HostCopy
from mechanisms.engines.losses import ExampleLosses, LossFunction
from mechanisms.engines.outputs import has_rows_only
from mechanisms.engines.parameters import FlatLayout, trainable_parameters
from mechanisms.engines.tally import counts
from mechanisms.units import ClippedUnit
from monitors.errors import UnprotectedUpdateError


@ENGINES.register("loop")
class LoopEngine(Engine):
    """One forward and backward pass per example (or per micro-batch group), with plain autograd.

    Supports any network that PyTorch can differentiate. Memory: the pass of one unit plus one gradient.
    """

    name: ClassVar[str] = "loop"
    proof: ClassVar[str] = "each unit passes through the network alone"
    shows_values: ClassVar[bool] = True
    takes_fillers: ClassVar[bool] = True
    takes_views: ClassVar[bool] = True

    @classmethod
    def refuses(cls, network: nn.Module, loss_fn: LossFunction, unit: ClippedUnit, example: Batch) -> str | None:
        """Refuse a network or loss that keeps state of an example that cannot be restored."""
        clip = Fixed()
        clip.start(1.0)
        probe = example.with_examples(example.x, example.y)
        try:
            cls(ClippedUnit(1, example.size)).clipped_sum(network, loss_fn, probe, clip)
        except UnprotectedUpdateError as error:
            return str(error)
        except Exception:  # a faulty network or loss raises its own error in training
            return None
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
        """Clip one unit after the other and add them up; fillers take no pass, and shapes are those of a unit."""
        loss_sum, norms, row = total.new_zeros(()), [], torch.empty_like(total)
        for index in range(batch.num_units - batch.fillers):
            members = _members(batch, index)
            with self.boundary.around(members):
                loss_sum += self._unit_gradient(network, losses, members, layout, row)
            norms.append(clip_rows(row.unsqueeze(0), clip, layout, total))
        found = torch.cat(norms)
        return PartialSum(found, HostCopy(counts(found, loss_sum)))

    def _unit_gradient(
        self, network: nn.Module, losses: ExampleLosses, members: Batch, layout: FlatLayout, out: Tensor
    ) -> Tensor:
        """Write the gradient of one unit to ``out``, shape (P,), and return the sum of its losses."""
        parameters = list(trainable_parameters(network).values())
        like = layout.zeros()
        if not members.size:
            out.zero_()
            return like
        gradients: Sequence[Tensor | None] = [None] * len(parameters)
        with torch.enable_grad():
            with self.boundary.user_code():
                loss = _summed_loss(network, losses, members)
            if loss.requires_grad:
                gradients = torch.autograd.grad(loss / self.unit.group_size, parameters, allow_unused=True)
        layout.flatten(gradients, like, out)
        return like.add_(loss.detach())


def _summed_loss(network: nn.Module, losses: ExampleLosses, members: Batch) -> Tensor:
    rows = Batch(members.rows, members.targets_of(members.y))
    outputs = call_network(network, rows.x)
    if rows.size == 1 or has_rows_only(outputs, rows.size):
        return members.mean_over_views(losses(outputs, rows.y)).sum()
    singles = (_members(rows, row) for row in range(rows.size))
    return members.mean_over_views(torch.cat([losses(call_network(network, one.x), one.y) for one in singles])).sum()


def _members(batch: Batch, unit: int) -> Batch:
    """Copies of the examples of a unit."""
    if batch.group_ids is None:
        found = batch.select(slice(unit, unit + 1))
    else:
        found = batch.select(torch.nonzero(batch.group_ids == unit).flatten())
    return found.with_examples(map_tensors(own_copy, found.x), map_tensors(own_copy, found.y))
