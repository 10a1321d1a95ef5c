"""Comparisons of values whose results are read later, so that the host does not wait for a GPU."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from torch import Tensor

from dpmodel.claims.snapshot import Comparison, Snapshot


@dataclass(frozen=True)
class LateComparison:
    """A queued comparison of a snapshot with the values at that time.

    Args:
        snapshot: The snapshot.
        compared: What the snapshot makes of it.
        step: Number of the step whose passes were queued before it; None if it follows no passes.
        of_optimizer: Whether the values are those of an optimizer, which may be set to zero.
    """

    snapshot: Snapshot
    compared: Comparison
    step: int | None
    of_optimizer: bool

    def changed(self) -> dict[str, Tensor]:
        """The values that had changed, by name; an optimizer's state of zeros holds nothing of the data."""
        found = self.snapshot.differing(self.compared)
        return {name: value for name, value in found.items() if not self.of_optimizer or bool(value.any())}

    def has_been_undone(self) -> bool:
        """Whether the values differ from those at the time of the comparison."""
        return not self.snapshot.are_still(self.compared)


class LateComparisons:
    """A queue of comparisons. None is forgotten before its result has been acted upon.

    Example:
        >>> import torch
        >>> weight = torch.zeros(3)
        >>> snapshot, late = Snapshot({"weight": weight}), LateComparisons()
        >>> late.queue(None, snapshot)
        >>> weight.numpy()[1] = 1.0
        >>> late.queue(0, snapshot)
        >>> [(one.step, one.changed()) for one in late.differing()]
        [(0, {'weight': tensor([0., 1., 0.])})]
    """

    def __init__(self) -> None:
        self._unread: deque[LateComparison] = deque()
        self._differing: list[LateComparison] = []

    def queue(self, step: int | None, *snapshots: Snapshot, of_optimizer: bool = False) -> None:
        """Compare values now, for ``differing`` to read; see ``LateComparison``."""
        for snapshot in snapshots:
            self._unread += [LateComparison(snapshot, each, step, of_optimizer) for each in snapshot.comparisons()]

    def differing(self) -> list[LateComparison]:
        """Read all results, and return the comparisons that found a change, until ``forget`` is called.

        After an interruption, the next call continues to read.
        """
        while self._unread:
            if not all(self._unread[0].compared.same.read()):
                self._differing.append(self._unread[0])
            self._unread.popleft()
        return self._differing

    def forget(self) -> None:
        """Drop the results that have been read."""
        self._differing = []
