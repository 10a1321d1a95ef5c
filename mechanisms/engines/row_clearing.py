"""Rows set to zero in place, where those to be cleared are known to the device alone."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

Clear = Callable[[Tensor, Tensor], None]

#: Sizes of the arrays with which a kernel is tried: few and many rows, whole and partial blocks.
_TRIED = ((5, 3), (7, 4099), (3, 2, 1030))


def clear_rows_(rows: Tensor, keep: Tensor) -> None:
    """Set the rows of ``rows``, shape (B, ...), to zero where ``keep``, shape (B,), is False, even if they hold NaN.

    The host never waits for the device. On a GPU with Triton, the rows that are kept are neither read nor written.

    Example:
        >>> rows = torch.tensor([[1.0, 2.0], [torch.nan, 3.0]])
        >>> clear_rows_(rows, torch.tensor([True, False]))
        >>> rows
        tensor([[1., 2.],
                [0., 0.]])
    """
    clear = _by_torch if rows.device.type == "cpu" or not _fits(rows) else _clearing_on(rows.device)
    clear(rows, keep)


def _fits(rows: Tensor) -> bool:
    """Whether the kernel takes arrays of this layout: (B, N) or (B, S, N) with contiguous last dimension."""
    return rows.dim() in (2, 3) and (rows.stride(-1) == 1 or rows.shape[-1] == 1)


def _by_torch(rows: Tensor, keep: Tensor) -> None:
    if rows.device.type == "cpu":
        rows[~keep] = 0.0  # reads and writes these rows alone
    else:
        rows.masked_fill_(~keep.view(-1, *[1] * (rows.dim() - 1)), 0.0)


@cache
def _clearing_on(device: torch.device) -> Clear:
    """The kernel, if it gives what torch gives on ``device``; else torch's own operations."""
    try:
        clear: Clear = importlib.import_module("mechanisms.engines.row_kernel").clear
        require_same_as_torch(clear, device)
    except Exception as error:
        warnings.warn(
            f"gradients that are not finite are masked on {device} by torch operations, because the Triton kernel "
            f"cannot be used ({type(error).__name__}: {error}). The results are the same, but each step is slower. "
            "For full speed, install a Triton version that matches torch, and a C compiler",
            RuntimeWarning,
            stacklevel=2,
        )
        return _by_torch
    return clear


def require_same_as_torch(clear: Clear, device: torch.device) -> None:
    """Compare ``clear`` with torch's operations on ``device``.

    Raises:
        RuntimeError: The results differ.
    """
    for shape in _TRIED:
        keep = torch.arange(shape[0], device=device) % 3 != 1
        rows = torch.arange(1.0, 1.0 + torch.Size(shape).numel(), device=device).view(shape)
        rows[~keep] = torch.nan
        if len(shape) == 3:  # as row-wise convolutions lay them out
            rows = rows.transpose(0, 1).contiguous().transpose(0, 1)
        expected = rows.clone()
        _by_torch(expected, keep)
        clear(rows, keep)
        if not torch.equal(rows, expected):
            raise RuntimeError(f"rows of shape {shape} are not cleared correctly")
