"""A layer that subtracts a mean, divides by a standard deviation and removes correlation, all of them fixed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from dpmodel.claims.weights import is_as_left, record_statistics
from monitors.errors import DataError
from monitors.ledger import Ledger

#: Ledgers of the statistics. The layers do not hold them as attributes, because the state of a network is restored
#: after each pass of a training, which records on them.
_LEDGERS: WeakKeyDictionary[nn.Module, Ledger] = WeakKeyDictionary()


class Standardise(nn.Module):
    """Subtracts a fixed mean and divides by a fixed standard deviation; it has buffers and no parameters.

    If the statistics are private releases, a ``DPModel`` whose network holds this layer continues with their ledger,
    unless it is given a different one.

    Args:
        mean: Subtracted from each example; its shape broadcasts to that of an example, such as (C, 1, 1).
        variance: Same shape, positive.
        ledger: The ledger on which the statistics were recorded; None for public ones.
        mixing: Matrix (D, D) that multiplies the D standardised channels at each position, such as a root of the
            inverse correlation; D is the number of means. None: nothing more is done.

    Raises:
        DataError: The shapes differ, a number is not finite in float32, or a variance is not positive.

    Example:
        >>> import torch
        >>> layer = Standardise(torch.tensor([1.0, 2.0]), torch.tensor([4.0, 0.25]))
        >>> layer(torch.tensor([[3.0, 2.5]]))
        tensor([[1., 1.]])
    """

    mean: Tensor
    scale: Tensor
    mixing: Tensor | None

    def __init__(
        self, mean: Tensor, variance: Tensor, ledger: Ledger | None = None, *, mixing: Tensor | None = None
    ) -> None:
        super().__init__()
        held = {"mean": mean.float().clone(), "scale": variance.double().rsqrt().float()}
        finite = all(bool(value.isfinite().all()) for value in (variance, *held.values()))
        if mean.shape != variance.shape or not finite:
            raise DataError(
                "mean and variance must be of one shape and finite in float32, and each variance positive, got shapes "
                f"{tuple(mean.shape)} and {tuple(variance.shape)}"
            )
        for name, value in held.items():
            self.register_buffer(name, value)
        mixing = None if mixing is None else mixing.float().clone()
        if mixing is not None and (mixing.shape != (mean.numel(),) * 2 or not bool(mixing.isfinite().all())):
            raise DataError(
                f"mixing must be a finite matrix of shape ({mean.numel()}, {mean.numel()}), got {tuple(mixing.shape)}"
            )
        self.register_buffer("mixing", mixing)
        self._released_on(ledger)

    def forward(self, x: Tensor) -> Tensor:
        """``(x - mean) / sqrt(variance)``, times ``mixing`` if there is one."""
        values = (x - self.mean) * self.scale
        return values if self.mixing is None else self._mixed(values, self.mixing)

    def _mixed(self, values: Tensor, mixing: Tensor) -> Tensor:
        first = values.dim() - self.mean.dim()  # the axes before those of an example
        channels = [axis + first for axis, size in enumerate(self.mean.shape) if size > 1]
        others = [axis for axis in range(values.dim()) if axis >= first and axis not in channels]
        order = [*range(first), *channels, *others]
        moved = values.permute(order)
        positions = math.prod(moved.shape[first:]) // len(mixing)
        rows = moved.reshape(*moved.shape[:first], len(mixing), positions)
        with torch.autocast(rows.device.type, enabled=False):  # low precision would drown directions of small variance
            # matmul would copy the matrix for every example if there are few positions
            mixed = torch.einsum("ij,...js->...is", mixing.to(rows.dtype), rows).reshape(moved.shape)
        # contiguous, so that the network behind it may call view
        return torch.permute(mixed, [order.index(axis) for axis in range(values.dim())]).contiguous()

    def extra_repr(self) -> str:
        """The shape of the statistics."""
        return str(tuple(self.mean.shape))

    def _released_on(self, ledger: Ledger | None, *, as_released: bool = True) -> None:
        if ledger is not None:
            _LEDGERS[self] = ledger
            record_statistics(self, ledger, as_released=as_released)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Standardise:
        as_released = is_as_left(self)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._released_on(_LEDGERS.get(self), as_released=as_released)  # moving or converting replaces the buffers
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Standardise:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        twin._released_on(_LEDGERS.get(self), as_released=False)  # equal values are known already
        return twin
