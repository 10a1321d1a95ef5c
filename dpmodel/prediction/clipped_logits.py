"""Logits of networks, centred and clipped, so that their sensitivity is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dpmodel.data.inference import predictions
from mechanisms.sums.vector_sum import clipped_to_grid
from monitors.errors import DataError


def logits_of(network: nn.Module, inputs: Any, device: torch.device, batch_size: int) -> NDArray[np.float64]:
    """The outputs of a network in evaluation mode, shape (B, classes).

    Raises:
        DataError: They are not one row of scores per example.
    """
    found = predictions(network, inputs, device, batch_size)
    if not isinstance(found, torch.Tensor) or found.dim() != 2 or found.shape[1] < 2:
        shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise DataError(
            f"the network must return one row of at least two scores per example, shape (B, classes), got {shape}"
        )
    values: NDArray[np.float64] = found.detach().to("cpu", torch.float64).numpy()
    return values


def clipped_logits(logits: NDArray[np.float64], norm_bound: float, grid: float) -> NDArray[np.int64]:
    """Logits (..., classes) centred at 0 and clipped to an L2 norm of ``norm_bound``, in multiples of ``grid``.

    Centring changes no probability. Logits that are not finite become zero: they say nothing, and cost the same.

    Example:
        >>> (clipped_logits(np.array([[2.0, 0.0], [np.nan, 1.0]]), 1.0, 2.0**-8) * 2.0**-8).round(1).tolist()
        [[0.7, -0.7], [0.0, 0.0]]
    """
    with np.errstate(over="ignore", invalid="ignore"):
        centred = logits - logits.mean(axis=-1, keepdims=True)
    return clipped_to_grid(centred, norm_bound, grid)


def device_of(networks: Sequence[nn.Module]) -> torch.device:
    """The device of the first parameter; the CPU if there is none."""
    return next((value.device for network in networks for value in network.parameters()), torch.device("cpu"))
