"""Copies of small tensors on the host, for which it waits as little as possible."""

from __future__ import annotations

import torch
from torch import Tensor


class HostCopy:
    """The values of a tensor, on their way to the host.

    On a GPU the copy is queued at once, and ``read`` waits for the kernels that were queued before it only: the GPU
    works on what was queued since while the host goes on.

    Args:
        values: A small tensor, which may be overwritten afterwards.

    Example:
        >>> HostCopy(torch.tensor([1.0, 2.0])).read()
        [1.0, 2.0]
    """

    def __init__(self, values: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if values.device.type == "cuda":
            self._values = torch.empty(values.shape, dtype=values.dtype, device="cpu", pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(values.device))
        else:
            self._values = values.detach().to("cpu", copy=True)

    @property
    def is_late(self) -> bool:
        """Whether ``read`` may wait for a GPU."""
        return self._event is not None

    def read(self) -> list[float]:
        """The values."""
        if self._event is not None:
            self._event.synchronize()
        return self._values.tolist()
