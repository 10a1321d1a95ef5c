"""Private steps of a network whose parameters ``fully_shard`` has divided among the ranks, for loops of your own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from dpmodel.distributed.agreement import digest_of
from dpmodel.distributed.group import current_ranks
from dpmodel.distributed.shards import Shards
from dpmodel.planning.release import NO_GUARANTEE, ReleasePlan
from dpmodel.preflight.network import require_valid
from mechanisms.engines.base import ClippedSum, bounded_factors
from mechanisms.engines.batch import Batch, all_tensors, call_network
from mechanisms.engines.losses import ExampleLosses, LossFunction
from mechanisms.engines.precision import require_full_products
from mechanisms.engines.tally import Tally
from mechanisms.noise import ScheduledGaussian
from monitors.errors import UnprotectedUpdateError, UnsupportedModuleError
from monitors.ledger import Ledger

#: Note on every ledger: the checks of ``DPModel`` do not know sharded parameters.
NOT_VERIFIED = f"isolation not verified (sharded parameters): {NO_GUARANTEE}"

_KEY_BYTES = 48


class ShardedStep:
    """Computes the noisy gradient of one batch, each rank for the coordinates that it owns, and records the release.

    Every rank passes the same examples, one at a time, and holds its shard of each gradient. Squared norms are added up
    over the ranks before the clip factor is computed, so one example moves the sum over all shards by at most the norm
    bound. Each rank adds noise of the full standard deviation to its own coordinates, from its own secret stream: each
    coordinate is released once, with noise that is drawn once, so the release has the distribution of one process.

    The event is on the ledger of every rank, and in the file that rank 0 writes, before any rank draws noise.

    Not checked, unlike by ``DPModel``: whether code of the network or the loss remembers an example (the ledger says
    so), whether the data set mixes examples, and whether weights change in any other way than by the optimizer.

    Args:
        network: A network after ``fully_shard``, over all ranks of the default process group. No rank may hold a
            trainable parameter whole.
        loss_fn: ``loss_fn(outputs, targets)``, as for ``DPModel``.
        plan: Mechanisms: ``Gaussian``, ``AdaGaussian`` or ``ShapedGaussian`` noise without a seed, a started clip
            mechanism that is not adaptive, a unit of one example, and a sampler, whose secret key all ranks share.
        ledger: File of the ledger, which rank 0 writes. If it exists, its releases stay charged. Give each training a
            file of its own. None: the ledger is in memory only.

    Raises:
        UnsupportedModuleError: The network is not sharded over all ranks, or has layers that mix examples.
        ValueError: A mechanism of the plan cannot be used in shards.
        DistributedError: The ranks differ.
    """

    def __init__(
        self, network: nn.Module, loss_fn: LossFunction, plan: ReleasePlan, ledger: str | os.PathLike[str] | None = None
    ) -> None:
        if not isinstance(network, FSDPModule):
            raise UnsupportedModuleError(
                f"{type(network).__name__} is not sharded: call torch.distributed.fsdp.fully_shard(network) first, or "
                "train it with DPModel"
            )
        require_valid(network)
        _require_divisible(plan)
        self.network, self.plan, self.ranks = network, plan, current_ranks()
        self.shards = Shards(network)
        self.number = plan.first_step
        self._losses, self._path = ExampleLosses(loss_fn), None if ledger is None else Path(ledger)
        self._rows: np.ndarray | None = None
        for name, value in self._settings().items():
            self.ranks.same(name, value)
        self.ranks.meet("the comparison of the ranks")
        key = self.ranks.share(os.urandom(_KEY_BYTES))
        if not plan.sampler.generator.reproducible:
            plan.sampler.generator.follow(key)
        self.ledger = self.ranks.once(self._found)
        for note in (*plan.caveats, NOT_VERIFIED):
            self.ledger.add_note(note)

    def draw(self) -> np.ndarray:
        """The rows of the next step, the same on every rank, possibly none."""
        self._rows = self.plan.sampler.rows(self.number - self.plan.first_step)
        return self._rows

    def __call__(self, x: Any, y: Any) -> None:
        """Set ``grad`` of every trainable parameter to its noisy mean gradient, for the optimizer to use.

        Args:
            x: Inputs of the examples in the rows of ``draw``, the same on every rank.
            y: Their targets.

        Raises:
            ValueError: ``draw`` was not called, or returned a different number of rows.
            DistributedError: The ranks have different examples, or a rank is lost.
            UnprotectedUpdateError: A forward pass has changed a buffer of the network.
        """
        rows, self._rows = self._rows, None
        batch = Batch(x, y)
        if rows is None or batch.size != len(rows):
            raise ValueError(
                f"the step has {batch.size} examples, but {'no rows' if rows is None else f'{len(rows)} rows'} were "
                "drawn for it; call draw() before each step, and pass exactly its rows"
            )
        with self._never_left_clean():
            self.ranks.same("the examples", digest_of([("", value) for value in all_tensors((x, y))]), shown=False)
            self.ranks.meet("the examples of a step")
            summed = self.clipped_sum(batch)
            event = self.plan.event(self.number)
            self.ledger.record(event)
            if self._path is not None and self.ranks.first:
                self.ledger.save(self._path)
            self.ranks.same("the release of the step", repr(event))
            self.ranks.meet("the release")  # it is on the disk, and all ranks have their part of it
            noisy = self.plan.noise.add(summed, self.number)
            self.number += 1
            self.shards.set_gradients(noisy.div_(self.plan.unit.expected_units))

    def clipped_sum(self, batch: Batch) -> ClippedSum:
        """This rank's coordinates of the clipped sum, private until noise is added, and the norms of whole gradients.

        Raises:
            UnprotectedUpdateError: A forward pass has changed a buffer of the network.
        """
        require_full_products()
        clip, shards = self.plan.clip, self.shards
        total, norms = shards.zeros(), [shards.zeros()[:0].new_zeros(0, shards.blocks(clip))]
        loss_sum, before = 0.0, [(value, value._version) for value in self.network.buffers()]
        for index in range(batch.size):
            loss_sum += self._backward(batch.select(slice(index, index + 1)))
            norm = shards.norms(clip)
            factors = bounded_factors(norm, clip, shards.size)
            if bool(torch.isfinite(norm).all()):
                shards.add_to(total, clip, factors)
            norms.append(norm)
        shards.clear()
        after = list(self.network.buffers())
        if len(after) != len(before) or any(
            a is not b or a._version != v for a, (b, v) in zip(after, before, strict=True)
        ):
            raise UnprotectedUpdateError(
                "a forward pass has changed a buffer of the network, which carries data past clipping and noise. The "
                "step was not released; discard the network, and use layers without running statistics"
            )
        found = torch.cat(norms)
        rejected = int((~torch.isfinite(found).all(dim=1)).sum())
        loss = loss_sum / batch.size if batch.size else float("nan")
        return ClippedSum(total, found, clip.norm_bound, clip.norm_bound, Tally.of(loss, rejected))

    def _backward(self, one: Batch) -> float:
        """Leave this rank's shard of the gradient of one example in ``grad``; the loss."""
        self.shards.clear()
        assert isinstance(self.network, FSDPModule)
        self.network.set_requires_gradient_sync(True)  # gradients that stay on a rank would reach the next example
        with torch.enable_grad():
            loss = self._losses(call_network(self.network, one.x), one.y).sum()
            if loss.requires_grad:
                loss.backward()
        return float(loss.detach())

    def _found(self) -> Ledger:
        return Ledger.load(self._path) if self._path is not None and self._path.exists() else Ledger()

    def _settings(self) -> dict[str, str]:
        plan = self.plan
        return {
            "the noise": f"{plan.noise!r}",
            "the clipping": f"{plan.clip!r}, {plan.unit!r}",
            "the sampling": f"{plan.sampler.describe()}, {plan.sampler.batch_size} of {plan.sampler.num_examples}",
            "the first step": str(plan.first_step),
            "the parameters": repr(self.shards.shapes),
        }

    @contextmanager
    def _never_left_clean(self) -> Iterator[None]:
        """If a step fails, no gradient without noise remains."""
        try:
            yield
        except BaseException:
            self.shards.clear()
            raise


def _require_divisible(plan: ReleasePlan) -> None:
    """Refuse mechanisms that are not the same when each rank carries them out for its own coordinates."""
    for mechanism in (plan.noise, plan.clip, plan.sampler):
        if not type(mechanism).__module__.startswith("mechanisms."):
            raise ValueError(f"{mechanism!r} is not a mechanism of this library, and only DPModel tests others")
    if not isinstance(plan.noise, ScheduledGaussian) or plan.noise.bands != 1:
        raise ValueError(
            f"{plan.noise!r} cannot be drawn shard by shard, because its numbers are not known to be independent; use "
            "Gaussian, AdaGaussian or ShapedGaussian"
        )
    if plan.noise.generator.reproducible:
        raise ValueError(
            "the noise has a seed, with which all ranks would add the same numbers to different coordinates; use seed=0"
        )
    if plan.unit.grouped:
        raise ValueError(f"a sharded step clips single examples, got {plan.unit!r}; use ClippedUnit(1, batch_size)")
    if not plan.clip.started:
        raise ValueError(f"{plan.clip!r} has no norm bound yet; call its start(norm_bound)")
    if plan.clip_event(plan.first_step) is not None:
        raise ValueError(
            f"{plan.clip!r} releases a noisy count, which each rank would draw for itself; use Fixed, Automatic or "
            "PerLayer"
        )
