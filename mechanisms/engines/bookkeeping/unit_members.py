"""The examples of each unit of a batch of groups."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class UnitMembers:
    """Which examples belong to which unit.

    Args:
        ids: Unit of each example, int64 of shape (B,).
        units: Number of units, including those without members.

    Example:
        >>> members = UnitMembers(torch.tensor([1, 0, 1]), 3)
        >>> members.order.tolist(), members.counts, members.summed(torch.tensor([[1.0], [2.0], [3.0]])).tolist()
        ([1, 0, 2], [1, 2, 0], [[2.0], [4.0], [0.0]])
    """

    ids: Tensor
    units: int

    @cached_property
    def order(self) -> Tensor:
        """The examples, sorted by unit, shape (B,)."""
        return self.ids.argsort(stable=True)

    @cached_property
    def counts(self) -> list[int]:
        """Number of members of each unit; the host waits for a GPU."""
        counts: list[int] = torch.bincount(self.ids, minlength=self.units).tolist()
        return counts

    def summed(self, rows: Tensor) -> Tensor:
        """Sums over the members of each unit, shape (units, ...), of rows (B, ...)."""
        return rows.new_zeros(self.units, *rows.shape[1:]).index_add_(0, self.ids, rows)
