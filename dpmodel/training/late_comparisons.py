"""Comparisons of values whose results are read later, so that the host does not wait for a GPU."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from dpmodel.claims.snapshot import Snapshot
from mechanisms.engines.host_copy import HostCopy


@dataclass(frozen=True)
class LateComparison:
    """A queued comparison of a snapshot with the present values.

    Args:
        snapshot: The snapshot.
        step: Number of the step whose passes were queued before it; None if it follows no passes.
        same: Entries are 1 where nothing has changed.
    """

    snapshot: Snapshot
    step: int | None
    same: HostCopy


class LateComparisons:
    """A queue of comparisons. None is forgotten before its result has been acted upon.

    Example:
        >>> import torch
        >>> weight = torch.zeros(3)
        >>> snapshot, late = Snapshot({"weight": weight}), LateComparisons()
        >>> late.queue(None, snapshot)
        >>> weight.numpy()[1] = 1.0
        >>> late.queue(0, snapshot)
        >>> [one.step for one in late.differing()]
        [0]
    """

    def __init__(self) -> None:
        self._unread: deque[LateComparison] = deque()
        self._differing: list[LateComparison] = []

    def queue(self, step: int | None, *snapshots: Snapshot) -> None:
        """Compare values now, for ``differing`` to read; ``step``: see ``LateComparison``."""
        self._unread += [LateComparison(one, step, same) for one in snapshots for same in one.comparisons()]

    def differing(self) -> list[LateComparison]:
        """Read all results, and return the comparisons that found a change, until ``forget`` is called.

        If the reading is interrupted, the next call goes on with it.
        """
        while self._unread:
            if not all(self._unread[0].same.read()):
                self._differing.append(self._unread[0])
            self._unread.popleft()
        return self._differing

    def forget(self) -> None:
        """Drop the results that have been read."""
        self._differing = []
