"""One forward and one backward pass that leaves, for every watched call, the gradient of its output."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mechanisms.engines.axes import AxisBook
from mechanisms.engines.batch import Batch, call_network, first_tensor, map_tensors
from mechanisms.engines.capture import Record, Recorder
from mechanisms.engines.losses import ExampleLosses
from mechanisms.engines.parameters import trainable_parameters
from mechanisms.engines.pooling import FastPooling
from mechanisms.engines.sites import Site
from monitors.errors import UnsupportedModuleError


@dataclass(frozen=True)
class Pass:
    """What a pass leaves: records with their gradients (None where the loss does not depend on them), losses (B,)."""

    records: list[tuple[Record, list[Tensor | None]]]
    losses: Tensor


def record_pass(
    network: nn.Module,
    losses: ExampleLosses,
    batch: Batch,
    sites: Sequence[Site],
    axes: AxisBook,
    precision: torch.dtype | None = None,
) -> Pass:
    """Run the network on a non-empty batch and differentiate the summed losses by the layers' outputs alone.

    Args:
        network: Left as it was, also after an exception.
        losses: Per-example losses.
        batch: Non-empty.
        sites: From ``find_sites``.
        axes: Settled.
        precision: Forward and backward under autocast to this type; None for the parameters' own.

    Raises:
        UnsupportedModuleError: A trainable parameter is used outside of the layers that own it.
    """
    recorder = Recorder(batch.size, axes)
    with torch.enable_grad(), recorder.watching(sites):
        with _autocast(batch, precision), FastPooling():
            values = losses(call_network(network, batch.x), batch.y)
        targets: list[Any] = [edge for record in recorder.records for edge in record.edges]
        parameters = trainable_parameters(network)
        everything: list[Any] = [*targets, *parameters.values()]
        grads: Sequence[Tensor | None] = [None] * len(everything)
        if values.requires_grad:
            grads = torch.autograd.grad(
                values.float().sum() if precision else values.sum(), everything, allow_unused=True
            )
    _refuse_strays(dict(zip(parameters, grads[len(targets) :], strict=True)))
    found, position = [], 0
    for record in recorder.records:
        if not record.untouched():
            raise UnsupportedModuleError(
                f"the input of layer {record.site.name!r} is changed in place after the layer has used it; use the "
                "out-of-place form of the operation"
            )
        found.append((record, list(grads[position : position + len(record.edges)])))
        position += len(record.edges)
    return Pass(found, values.detach())


def find_axes(network: nn.Module, batch: Batch, sites: Sequence[Site]) -> AxisBook:
    """Where the examples lie in every watched call, from two forward passes on copies of the batch's first example.

    The random state and the network's buffers are left as they were.
    """
    book = AxisBook()
    devices = {value.device for value in network.parameters() if value.device.type == "cuda"}
    buffers = [(value, value.clone()) for value in network.buffers()]
    with torch.random.fork_rng(devices=list(devices)), torch.enable_grad():
        for size in AxisBook.sizes:
            rows = torch.zeros(size, dtype=torch.long)
            x = map_tensors(lambda value, rows=rows: value[rows.to(value.device)], batch.x)  # type: ignore[misc]
            with Recorder(size, book).watching(sites):
                call_network(network, x)
    with torch.no_grad():
        for value, before in buffers:
            value.copy_(before)
    book.settle()
    return book


def _autocast(batch: Batch, precision: torch.dtype | None) -> AbstractContextManager[object]:
    if precision is None:
        return nullcontext()
    return torch.autocast(first_tensor(batch.x).device.type, dtype=precision)


def _refuse_strays(grads: dict[str, Tensor | None]) -> None:
    for name, grad in grads.items():
        if grad is not None:
            raise UnsupportedModuleError(
                f"parameter {name!r} is used outside of the forward pass of the layer that owns it, where its "
                "per-example gradient cannot be recorded"
            )
