"""One forward and one backward pass that leaves, for every watched call, the gradient of its output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mechanisms.engines.batch import Batch, call_network, first_tensor
from mechanisms.engines.bookkeeping.pool_first import PoolFirst
from mechanisms.engines.bookkeeping.recorder import Record, Recorder
from mechanisms.engines.bookkeeping.survey import Survey, draws_of
from mechanisms.engines.isolation.isolated import isolated
from mechanisms.engines.losses import ExampleLosses
from monitors.errors import UnsupportedModuleError


@dataclass(frozen=True)
class Pass:
    """What a pass leaves.

    Args:
        records: Records whose gradient nobody took, with the gradients of their leaves or, if they have none, that of
            their output; None where the loss does not depend on it.
        losses: Shape (B,).
    """

    records: list[tuple[Record, list[Tensor | None]]]
    losses: Tensor


def record_forward(
    network: nn.Module, losses: ExampleLosses, batch: Batch, survey: Survey, precision: torch.dtype | None = None
) -> tuple[Recorder, Tensor]:
    """Records and losses (B,) of an isolated forward pass; one that does not go the way of the survey is done again.

    Args:
        network: Left as it was, also after an exception.
        losses: Per-example losses.
        batch: Non-empty.
        survey: Of this network in this mode.
        precision: Under autocast to this type; None for the parameters' own.
    """
    order = PoolFirst(frozenset(survey.before_pools))
    with torch.enable_grad(), draws_of(survey.shared_draws):
        try:
            recorded = _attempt(network, losses, batch, survey, precision, order)
        except Exception:
            if order.sound:
                raise
        else:
            if order.sound:
                return recorded
        survey.before_pools.clear()
        return _attempt(network, losses, batch, survey, precision, PoolFirst())


def record_backward(
    recorded: tuple[Recorder, Tensor],
    survey: Survey,
    precision: torch.dtype | None = None,
    expect: Callable[[Sequence[Record]], None] | None = None,
) -> Pass:
    """Differentiate the summed losses of a recorded pass by the layers' outputs alone.

    Args:
        recorded: What ``record_forward`` gave.
        survey: The same.
        precision: The same.
        expect: Shown all records before the first gradient is known, so that it may give some a ``taker``.

    Raises:
        UnsupportedModuleError: A trainable parameter is used outside of the layers that own it, or a layer's input is
            written to after its use.
    """
    recorder, values = recorded
    records = recorder.records
    _refuse_unrecordable(records)
    if expect is not None:
        expect(records)
    leaves = [leaf for record in records for leaf in record.leaves]
    everything: list[Any] = [*leaves, *survey.parameters.values(), *recorder.roots]
    grads: Sequence[Tensor | None] = [None] * len(everything)
    if values.requires_grad:
        with torch.enable_grad():
            summed = values.float().sum() if precision else values.sum()
        grads = torch.autograd.grad(summed, everything, allow_unused=True)
    _refuse_strays(dict(zip(survey.parameters, grads[len(leaves) :], strict=False)))
    of_leaves = iter(grads)
    found = [
        (record, [next(of_leaves) for _ in record.leaves] if record.leaves else [record.gradient])
        for record in records
        if record.taker is None
    ]
    return Pass(found, values.detach())


def _attempt(
    network: nn.Module,
    losses: ExampleLosses,
    batch: Batch,
    survey: Survey,
    precision: torch.dtype | None,
    order: PoolFirst,
) -> tuple[Recorder, Tensor]:
    recorder = Recorder(batch.size)

    def loss_of(x: Any, y: Any) -> Tensor:
        return losses(call_network(network, x), y).squeeze(0)

    with recorder.watching(survey.sites), _autocast(batch, precision), order if survey.pools else nullcontext():
        return recorder, isolated(loss_of, batch.x, batch.y)


def _autocast(batch: Batch, precision: torch.dtype | None) -> AbstractContextManager[object]:
    if precision is None:
        return nullcontext()
    return torch.autocast(first_tensor(batch.x).device.type, dtype=precision)


def _refuse_unrecordable(records: Sequence[Record]) -> None:
    for record in records:
        if not record.untouched():
            raise UnsupportedModuleError(
                f"the input of layer {record.site.name!r} is changed in place after the layer has used it; use the "
                "out-of-place form of the operation"
            )
        if len(record.hooks) > 1:
            raise UnsupportedModuleError(
                f"the output of layer {record.site.name!r} has a hook on its gradient, which changes it after it was "
                "recorded; use engine='vmap' or engine='loop'"
            )


def _refuse_strays(grads: dict[str, Tensor | None]) -> None:
    for name, grad in grads.items():
        if grad is not None:
            raise UnsupportedModuleError(
                f"parameter {name!r} is used outside of the forward pass of the layer that owns it, where its "
                "per-example gradient cannot be recorded"
            )
