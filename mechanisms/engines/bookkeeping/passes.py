"""One forward and one backward pass that give, for each watched call, the gradient of its output.

``record_forward`` runs the network and the losses isolated, under a ``Recorder``. ``record_backward`` differentiates
the sum of the losses with respect to the outputs of the first layers alone: on its way, autograd visits the outputs of
all other layers, whose hooks take the gradients. Parameters are constants meanwhile: their gradients, summed over the
batch before anything is clipped, would be of no use. See Bu et al. 2023, "Differentially Private Optimization on Large
Model at Small Cost".
"""

from __future__ import annotations

from collections.abc import Sequence
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
from mechanisms.engines.precision import PRECISIONS, Precision
from monitors.errors import UnsupportedModuleError

FULL = PRECISIONS["fp32"]


@dataclass(frozen=True)
class Pass:
    """Result of a pass.

    Args:
        records: Records without an ``on_gradient`` callback, each with the gradients of its leaves or, if it has none,
            that of its output; None if the loss does not depend on it.
        losses: Shape (B,).
    """

    records: list[tuple[Record, list[Tensor | None]]]
    losses: Tensor


def record_forward(
    network: nn.Module, losses: ExampleLosses, batch: Batch, survey: Survey, precision: Precision = FULL
) -> tuple[Recorder, Tensor]:
    """Records and losses (B,) of an isolated forward pass.

    The survey says which activations may be deferred until after their max-pooling. A pass that uses one of them in any
    other way (its control flow has changed since the survey) is repeated without deferring, as are all later passes.

    Args:
        network: Restored afterwards, even after an exception.
        losses: Per-example losses.
        batch: Non-empty.
        survey: Survey of this network in its current mode.
        precision: Precision of the pass.
    """
    order = PoolFirst(frozenset(survey.before_pools))
    with torch.enable_grad(), draws_of(survey.shared_draws):
        try:
            recorded = _attempt(network, losses, batch, survey, precision, order)
        except Exception:
            if order.sound:  # not our doing: an error of the network or of the loss
                raise
        else:
            if order.sound:
                return recorded
        survey.before_pools.clear()
        return _attempt(network, losses, batch, survey, precision, PoolFirst())


def record_backward(
    recorded: tuple[Recorder, Tensor],
    survey: Survey,
    precision: Precision = FULL,
) -> Pass:
    """Differentiate the summed losses of a recorded pass with respect to the layers' outputs alone.

    Args:
        recorded: Result of ``record_forward``.
        survey: The survey of the forward pass.
        precision: The precision of the forward pass.

    Raises:
        UnsupportedModuleError: A trainable parameter is used outside the layers that own it, or a layer's input is
            written to after its use.
    """
    recorder, values = recorded
    records = recorder.records
    _refuse_unrecordable(records)
    leaves = [leaf for record in records for leaf in record.leaves]
    # Watched layers use their parameters as constants. A parameter that gets a gradient nevertheless was also used
    # elsewhere. The recorded calls miss that part of its gradient, so it is refused below.
    everything: list[Any] = [*leaves, *survey.parameters.values(), *recorder.roots]
    grads: Sequence[Tensor | None] = [None] * len(everything)
    if values.requires_grad:
        with torch.enable_grad():
            # Losses under autocast may be in half precision, in which a sum over many examples rounds or overflows.
            summed = values.float().sum() if precision.autocast else values.sum()
        with precision.of_products():
            grads = torch.autograd.grad(summed, everything, allow_unused=True)
    _refuse_strays(dict(zip(survey.parameters, grads[len(leaves) :], strict=False)))
    of_leaves = iter(grads)
    found = [
        (record, [next(of_leaves) for _ in record.leaves] if record.leaves else [record.gradient])
        for record in records
        if record.on_gradient is None
    ]
    return Pass(found, values.detach())


def _attempt(
    network: nn.Module,
    losses: ExampleLosses,
    batch: Batch,
    survey: Survey,
    precision: Precision,
    order: PoolFirst,
) -> tuple[Recorder, Tensor]:
    recorder = Recorder(batch.size)

    def loss_of(x: Any, y: Any) -> Tensor:
        found = losses(call_network(network, batch.rows_of(x)), batch.targets_of(y))
        return batch.mean_over_views(found).squeeze(0)

    autocast, pooling = _autocast(batch, precision.autocast), order if survey.pools else nullcontext()
    with recorder.watching(survey.sites), autocast, pooling, precision.of_products():
        return recorder, isolated(loss_of, batch.x, batch.y)


def _autocast(batch: Batch, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    if dtype is None:
        return nullcontext()
    return torch.autocast(first_tensor(batch.x).device.type, dtype=dtype)


def _refuse_unrecordable(records: Sequence[Record]) -> None:
    for record in records:
        if not record.untouched():
            raise UnsupportedModuleError(
                f"the input of layer {record.site.name!r} is changed in place after the layer used it; use the "
                "out-of-place form of that operation"
            )
        if len(record.hooks) > 1:
            raise UnsupportedModuleError(
                f"the output of layer {record.site.name!r} has a gradient hook, which would change the gradient after "
                "it is recorded; use engine='vmap' or engine='loop'"
            )


def _refuse_strays(grads: dict[str, Tensor | None]) -> None:
    for name, grad in grads.items():
        if grad is not None:
            raise UnsupportedModuleError(
                f"parameter {name!r} is used outside the forward pass of the layer that owns it, where its per-example "
                "gradient cannot be recorded; use engine='vmap' or engine='loop'"
            )
