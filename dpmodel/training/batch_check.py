"""A check of batches during training: the clipped sum must equal the sum over the halves of the batch."""

from __future__ import annotations

import math
import secrets
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from mechanisms.clipping import ClipMechanism
from mechanisms.engines.base import Engine
from mechanisms.engines.batch import Batch, call_network, first_tensor, map_tensors
from mechanisms.engines.losses import LossFunction
from mechanisms.engines.precision import full_float32
from mechanisms.engines.probing import draws, preserve_state
from monitors.errors import UnprotectedUpdateError

#: After the first batch, one batch in this many is checked, with this many of its examples.
CHECKED_EVERY = 100
CHECKED_EXAMPLES = 64

#: Examples on which passes are tested for random draws.
_TRIED = 8

#: Largest rounding error over the norm bound. In reduced precision, rounding depends on the place of an example in the
#: batch: the error grows with the square root of the batch size.
_ROUNDING = 1e-3
_COARSE_ROUNDING = 0.02

#: The same in units in the last place of the sum: thousands of gradients in one direction round by more.
_PLACES = 32

#: The note if sums are not compared.
NOT_COMPARED = (
    "the sums of batches were not compared with the sums of their halves: the network or the loss draws random numbers "
    "even in evaluation mode"
)

_FAULTY = (
    "The engine {!r} or the rule of a custom layer is wrong; use engine='loop', which passes each example through "
    "separately"
)
_KEPT = (
    "The network or the loss carries something of one example to others where it cannot be restored (a file, a thread, "
    "compiled code), or draws random numbers that no generator shows"
)


class Additivity:
    """Tests the privacy claim on the batches of a training: the second line of defence.

    One example moves the sum by its own clipped gradient only, if and only if a batch is the sum of its parts. The
    engine isolates examples, so this holds; a fault in an engine or in the rule of a layer would show here. The first
    batch is checked completely and later ones in part, cut in two by a secret permutation. Networks and losses that
    draw random numbers are compared in evaluation mode.

    Args:
        network: In training mode.
        loss_fn: The user's loss.
        engine: The engine of the training.
        clip: A started clip mechanism.

    Attributes:
        not_compared: Why sums are not compared; None if they are.
    """

    def __init__(self, network: nn.Module, loss_fn: LossFunction, engine: Engine, clip: ClipMechanism) -> None:
        self._network, self._loss_fn, self._engine, self._clip = network, loss_fn, engine, clip
        self._batches = 0
        self._random = False
        self.not_compared: str | None = None

    def __call__(self, batch: Batch) -> None:
        """Check a batch before its step.

        Raises:
            UnprotectedUpdateError: The sum of the batch differs from the sum over its halves.
        """
        if batch.size < 2:
            return
        number, self._batches = self._batches, self._batches + 1
        if number % CHECKED_EVERY or self.not_compared is not None:
            return
        rows = _permutation(batch.size).to(first_tensor(batch.x).device)
        checked = batch.select(rows if number == 0 else rows[:CHECKED_EXAMPLES])
        with preserve_state(self._network, self._loss_fn), full_float32():  # TF32 rounds by the size of the batch
            if number == 0:
                self._find_randomness(checked.select(slice(_TRIED)))
            if self._random:
                self._network.eval()
            if self.not_compared is None:
                self._require_additive(checked)

    def _find_randomness(self, tried: Batch) -> None:
        self._random = self._draws(tried)
        if self._random:
            with preserve_state(self._network):
                self._network.eval()
                if self._draws(tried):
                    self.not_compared = NOT_COMPARED

    def _draws(self, batch: Batch) -> bool:
        if not self._engine.shows_values:
            return draws(self._network, lambda: self._sum(batch))
        examples = [
            batch.select(slice(row, row + 1)) for row in range(batch.size)
        ]  # the engine seeds the generators for each example
        return any(draws(self._network, partial(self._loss, example)) for example in examples)

    def _loss(self, batch: Batch) -> object:
        return self._loss_fn(call_network(self._network, batch.x), batch.y)

    def _require_additive(self, batch: Batch) -> None:
        difference = self._sum(batch)
        last_place = torch.finfo(difference.dtype).eps * float(difference.norm())
        for half in _halves(batch):
            difference -= self._sum(half)
        bound, off = self._clip.norm_bound, float(difference.norm())
        if not off <= max(self._rounding(batch) * bound, _PLACES * last_place):
            raise UnprotectedUpdateError(
                f"the clipped sum of a batch of {batch.size} examples differs from the sums of its halves by "
                f"{off / bound:.3g} norm bounds: one example could move the sum by more than the ledger accounts for. "
                f"The step was not taken. {_KEPT if self._engine.shows_values else _FAULTY.format(self._engine.name)}"
            )

    def _sum(self, batch: Batch) -> Tensor:
        own = replace(batch, x=map_tensors(torch.clone, batch.x), y=map_tensors(torch.clone, batch.y))
        return self._engine.clipped_sum(
            self._network, self._loss_fn, own, self._clip
        ).flat_grad  # some networks write to their inputs

    def _rounding(self, batch: Batch) -> float:
        narrow = any(value.dtype in (torch.float16, torch.bfloat16) for value in self._network.parameters())
        coarse = narrow or getattr(self._engine, "precision", "fp32") != "fp32"
        return _COARSE_ROUNDING * (1.0 + math.sqrt(batch.size)) if coarse else _ROUNDING


def _permutation(size: int) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(secrets.randbits(63))
    return torch.randperm(size, generator=generator, device="cpu")


def _halves(batch: Batch) -> list[Batch]:
    """Two parts that share no unit."""
    if batch.group_ids is None:
        return [batch.select(slice(batch.size // 2)), batch.select(slice(batch.size // 2, None))]
    first = batch.group_ids < batch.num_units // 2
    return [batch.select(first), batch.select(~first)]
