"""Looks for training examples in what the examples pass through."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dpmodel.claims.held import held_by
from mechanisms.engines.batch import Batch, all_tensors
from monitors.errors import DataError

#: A public table has a row of as many different values in common with an example only if it holds it.
DISTINCT = 8


def require_no_examples(network: Any, loss_fn: Any, examples: Batch) -> None:
    """Refuse a tensor of the network or the loss that holds a tried example as a row, as a memory bank does.

    Such a tensor moves the gradients of all examples if one record changes, and no clipping bounds that.

    Args:
        network: The network.
        loss_fn: The loss.
        examples: Several examples of the training data.

    Raises:
        DataError: A tensor has one of ``examples`` as a row. What is computed from rows is not recognised, nor are
            examples that any table may contain: integers, and those of few different values.
    """
    parts = [example for part in all_tensors(examples.x) for example in part if _is_distinctive(example)]
    for name, holder in (("the network", network), ("the loss", loss_fn)):
        for tensor in held_by(holder):
            if any(tensor.dtype == example.dtype and is_among(example, tensor) for example in parts):
                raise DataError(
                    f"{name} holds training examples in a tensor of shape {tuple(tensor.shape)}. One record would move "
                    "the gradients of all examples, but the ledger accounts for one. Use public examples, or private "
                    "statistics (dpmodel.statistics)"
                )


def _is_distinctive(example: Tensor) -> bool:
    if example.layout is not torch.strided or example.dtype not in (torch.float32, torch.float64):
        return False
    return len(example.unique()) >= DISTINCT


def is_among(example: Tensor, tensor: Tensor) -> bool:
    """Whether rows of ``tensor`` equal ``example``; one of equal numbers, such as a blank image, proves nothing."""
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        return False
    if example.dim() > tensor.dim() or tensor.shape[tensor.dim() - example.dim() :] != example.shape:
        return False
    values = example.detach().reshape(-1).to(tensor.device)
    if not len(values) or bool((values == values[0]).all()):
        return False
    rows, place = tensor.detach().reshape(-1, len(values)), int((values != values[0]).nonzero()[0])
    alike = rows[rows[:, place] == values[place]]
    return bool((alike == values).all(dim=1).any())
