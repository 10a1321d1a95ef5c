"""Memory that is reused across chunks and steps."""

from __future__ import annotations

import math
from collections.abc import Hashable

import torch
from torch import Tensor


class Scratch:
    """Keeps the large arrays of a step: memory returned to the system is slow to get back, page by page.

    Asking again for the same use ends the life of the array that was returned before. On a GPU nothing is kept here:
    PyTorch's allocator does that.

    Example:
        >>> scratch, like = Scratch(), torch.zeros(0)
        >>> first = scratch.empty("rows", (3, 4), like)
        >>> scratch.empty("rows", (2, 5), like).data_ptr() == first.data_ptr()
        True
        >>> scratch.held_bytes
        48
    """

    def __init__(self) -> None:
        self._held: dict[tuple[Hashable, torch.dtype], Tensor] = {}
        self._shaped: dict[tuple[Hashable, torch.dtype], Tensor] = {}

    @property
    def held_bytes(self) -> int:
        """Number of bytes kept."""
        return sum(held.nbytes for held in self._held.values())

    def empty(self, use: Hashable, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """An uninitialised array of that shape, with the dtype and device of ``like``."""
        if like.device.type != "cpu":
            return like.new_empty(shape)
        key = (use, like.dtype)
        shaped = self._shaped.get(key)
        if shaped is None or shaped.shape != shape:
            shaped = self._shaped[key] = self._flat(key, math.prod(shape), like).view(shape)
        return shaped

    def _flat(self, key: tuple[Hashable, torch.dtype], size: int, like: Tensor) -> Tensor:
        held = self._held.get(key)
        if held is None or held.numel() < size:
            self._held.pop(key, None)
            self._shaped.pop(key, None)
            held = self._held[key] = like.new_empty(size)
        return held[:size]
