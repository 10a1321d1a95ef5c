"""Inner products of a convolution's windows, computed without the windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class WindowAxis:
    """One spatial dimension of a convolution.

    Args:
        size: Entries of the input.
        positions: Entries of the output.
        kernel: Offsets within a window.
        stride: Steps from window to window.
        dilation: Steps from offset to offset.
        padding: Zeros before the first entry.
    """

    size: int
    positions: int
    kernel: int
    stride: int
    dilation: int
    padding: int

    def seen(self, offset: int) -> tuple[slice, slice] | None:
        """The positions whose windows hold data at ``offset``, and the entries they hold; None if all see padding.

        Example:
            >>> WindowAxis(size=4, positions=4, kernel=3, stride=1, dilation=1, padding=1).seen(0)
            (slice(1, 4, None), slice(0, 3, 1))
        """
        begin = offset * self.dilation - self.padding
        first, last = max(0, -(begin // self.stride)), min(self.positions - 1, (self.size - 1 - begin) // self.stride)
        if first > last:
            return None
        start, stop = first * self.stride + begin, last * self.stride + begin + 1
        return slice(first, last + 1), slice(start, stop, self.stride)

    def offsets_with_data(self) -> slice:
        """From the first to the last offset at which some window holds data; other offsets have zero gradient."""
        found = [offset for offset in range(self.kernel) if self.seen(offset) is not None]
        return slice(found[0], found[-1] + 1) if found else slice(0, 0)


def window_gram(x: Tensor, axes: Sequence[WindowAxis]) -> Tensor:
    """Inner products of all pairs of windows, shape (N, T, T) in float64, for T positions.

    The inner product of two windows is a sum, over the kernel's offsets, of inner products of two entries of the input.
    Windows overlap, so there are far fewer of those. The sum is taken one spatial dimension at a time.

    Args:
        x: Shape (N, C, *sizes).
        axes: The spatial dimensions.
    """
    wide = x.flatten(2).double()
    sizes = [axis.size for axis in axes]
    gram = torch.bmm(wide.transpose(1, 2), wide).view(len(x), *sizes, *sizes)
    for index, axis in enumerate(axes):
        gram = _summed_over_offsets(gram, axis, 1 + index, 1 + index + len(axes))
    return gram.flatten(1 + len(axes)).flatten(1, len(axes))


def _summed_over_offsets(gram: Tensor, axis: WindowAxis, row: int, column: int) -> Tensor:
    """Sum over the offsets of ``axis``: from entries to positions, along both of its dimensions."""
    if (axis.kernel, axis.stride, axis.padding) == (1, 1, 0):
        return gram
    shape = list(gram.shape)
    shape[row] = shape[column] = axis.positions
    summed = gram.new_zeros(shape)
    for offset in range(axis.kernel):
        pair = axis.seen(offset)
        if pair is not None:
            positions, entries = pair
            summed[_both(positions, row, column)] += gram[_both(entries, row, column)]
    return summed


def _both(chosen: slice, row: int, column: int) -> tuple[slice, ...]:
    return tuple(chosen if dim in (row, column) else slice(None) for dim in range(column + 1))
