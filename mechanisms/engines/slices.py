"""Iterates over large tensors in slices, so that temporary results stay in the processor's cache."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

#: Number of entries in a slice: one megabyte in single precision.
ENTRIES = 2**18


def slices(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views along the last dimension of tensors of the same shape, in order; on a GPU, the whole tensors.

    Allocating a temporary tensor of a hundred million entries takes several times as long as computing its entries,
    because the system maps fresh memory.

    Args:
        *tensors: Tensors with at least one dimension.

    Example:
        >>> import torch
        >>> [part.numel() for (part,) in slices(torch.zeros(2, 2**18 + 1))]
        [262144, 262144, 2]
        >>> float(sum(part.square().sum() for (part,) in slices(torch.ones(3))))
        3.0
    """
    first = tensors[0]
    if first.device.type != "cpu" or first.numel() <= ENTRIES:
        yield tensors
        return
    rows = first.numel() // first.shape[-1]
    yield from zip(*(tensor.split(max(1, ENTRIES // rows), dim=-1) for tensor in tensors), strict=True)
