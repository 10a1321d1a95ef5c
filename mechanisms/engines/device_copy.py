"""Copies of small tensors of the host on a device."""

from __future__ import annotations

import torch


def device_copy(value: torch.Tensor, device: torch.device) -> torch.Tensor:
    """``value`` on ``device``; unlike with ``value.to(device)``, the host does not wait for a GPU's earlier work.

    Example:
        >>> device_copy(torch.tensor([1, 2]), torch.device("cpu"))
        tensor([1, 2])
    """
    if device.type != "cuda" or value.device.type != "cpu":
        return value.to(device)
    return value.pin_memory().to(device, non_blocking=True)
