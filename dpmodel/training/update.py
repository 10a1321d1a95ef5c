"""The private update: noise is added to the clipped sum, and the optimizer takes a step along the noisy mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim import Optimizer

from dpmodel.distributed.ranks import ALONE, Ranks
from dpmodel.planning.release import ReleasePlan
from dpmodel.training.guard import UpdateGuard
from dpmodel.training.update_graph import UpdateGraph
from mechanisms.engines.base import ClippedSum
from mechanisms.engines.parameters import FlatLayout
from mechanisms.normal_noise import stated_multiplier
from mechanisms.overriding import speaks_for
from mechanisms.rng import SecureGenerator


@dataclass
class Update:
    """Makes new weights from a clipped sum, whose release is on the ledger.

    Args:
        optimizer: Over the trainable parameters.
        plan: The noise mechanism and the expected number of units.
        guard: Knows the parameters, and accepts what the update makes of them.
        layout: Position of each parameter in the sum.
        total: Holds the sums of all steps, shape (P,).
        graph: Records and replays updates.
        padding: Rows of parameters, by name, whose gradient is always zero: their noise is removed, which is
            post-processing of the release.
        ranks: The processes that train together.
    """

    optimizer: Optimizer
    plan: ReleasePlan
    guard: UpdateGuard
    layout: FlatLayout
    total: Tensor
    graph: UpdateGraph
    padding: Mapping[str, Sequence[int]] = field(default_factory=dict)
    ranks: Ranks = ALONE

    def __call__(self, summed: ClippedSum, step: int) -> None:
        """Do the update of step ``step``; the sum becomes the noisy mean.

        On a GPU, an update that equals earlier ones in all but values and the scale of the noise is a replay of them.
        """
        scale = self._scale(summed, step) if self.graph.records_on(self.total.device) else None
        key = self.graph.key(self, scale)
        if scale is not None and self.graph.has(key, scale):
            with self.guard.update(step):
                self.graph.replay(scale)
                self._mark_written()
            return
        noisy = self.ranks.released(lambda: self.plan.noise.add(summed, step), summed)
        with self.guard.update(step), self.graph.around_step(key, self):
            self.descend(noisy)
            self._mark_written()

    @property
    def generator(self) -> SecureGenerator:
        """The source of the noise."""
        return self.plan.noise.generator

    @property
    def units(self) -> float:
        """The expected number of units, by which the sum is divided."""
        return self.plan.unit.expected_units

    @property
    def tensors(self) -> list[Tensor]:
        """All that an update reads and writes: the sum, the parameters and the optimizer's state."""
        parameters = [value for group in self.optimizer.param_groups for value in group["params"]]
        states = [value for each in parameters for value in self.optimizer.state.get(each, {}).values()]
        return [self.total, *parameters, *(value for value in states if isinstance(value, Tensor))]

    @property
    def noisy_entries(self) -> int:
        """Number of entries of the mean that keep their noise."""
        rows = [self.guard.parameters[name][0].numel() * len(rows) for name, rows in self.padding.items()]
        return self.layout.size - sum(rows)

    def descend(self, noisy: Tensor) -> None:
        """Divide the noisy sum, in place, and let the optimizer take a step."""
        parameters, parts = self.guard.parameters, self.layout.views(noisy.div_(self.units))
        for parameter, part in zip(parameters.values(), parts, strict=True):
            parameter.grad = part.to(parameter.dtype)
        for name, rows in self.padding.items():
            for row in rows:  # a list as index would make the host wait for a GPU
                parameters[name].grad[row] = 0.0  # type: ignore[index]
        self.optimizer.step()

    def _mark_written(self) -> None:
        """Raise the versions of the parameters, which replays and fused steps leave as they are."""
        torch.autograd.graph.increment_version(tuple(self.guard.parameters.values()))

    def _scale(self, summed: ClippedSum, step: int) -> float | None:
        """Standard deviation of the noise, if it is independent normal noise that is added in place; otherwise None."""
        noise, factor = self.plan.noise, self.plan.unit.sensitivity_factor
        if summed.flat_grad is not self.total or not speaks_for(noise, "added_scale", "add"):
            return None
        scale, stated = noise.added_scale(step, summed.norm_bound), stated_multiplier(noise.event(step, factor))
        if scale is None or stated is None:
            return None
        # With another scale than that of its event, noise comes from the mechanism itself, which was tried.
        return scale if math.isclose(scale, stated * factor * summed.norm_bound, rel_tol=1e-9) else None
