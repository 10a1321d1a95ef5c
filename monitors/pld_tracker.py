"""Privacy-loss distributions of a ledger while it grows: the full composition is asked for as seldom as possible."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

from monitors.accountant import Tracker
from monitors.events import PrivacyEvent
from monitors.rdp import RDPAccountant

if TYPE_CHECKING:
    from monitors.pld import PLDAccountant

_BLOCK = 512  # announced events that are cleared together


class PLDTracker(Tracker):
    """Remembers the last figure, and clears many announced events with one composition.

    Guarantees: epsilon never falls with more releases, so a ledger of all announced events that stays within a limit
    clears each of them. A Renyi bound, which costs next to nothing, is asked first.

    Args:
        accountant: Whose figures to give.
    """

    def __init__(self, accountant: PLDAccountant) -> None:
        super().__init__(accountant)
        self._renyi = RDPAccountant().tracker()
        self._announced: deque[PrivacyEvent] = deque()
        self._cleared: dict[tuple[float, float], int] = {}
        self._known: dict[float, float] = {}

    def add(self, event: PrivacyEvent, count: int = 1) -> None:
        """Count ``count`` more releases of ``event``."""
        super().add(event, count)
        self._renyi.add(event, count)
        self._known.clear()
        if count == 1 and self._announced and self._announced[0] == event:
            self._announced.popleft()
            self._cleared = {limit: left - 1 for limit, left in self._cleared.items()}
        else:
            self._announced.clear()
            self._cleared.clear()

    def prepare(self, events: Iterable[PrivacyEvent]) -> None:
        """Announce the events that will follow, in their order."""
        self._announced = deque(events)
        self._cleared.clear()
        self._renyi.prepare(self._announced)

    def epsilon(self, delta: float) -> float:
        """Epsilon at ``delta`` of all that was added."""
        if delta not in self._known:
            self._known[delta] = super().epsilon(delta)
        return self._known[delta]

    def stays_within(self, event: PrivacyEvent, epsilon: float, delta: float) -> bool:
        """Whether one more release of ``event`` leaves epsilon at ``delta`` at or below ``epsilon``."""
        limit = (epsilon, delta)
        expected = bool(self._announced) and self._announced[0] == event
        if expected and self._cleared.get(limit, 0) > 0:
            return True
        if self._renyi.epsilon_with(event, delta) <= epsilon:
            return True
        return self._clear(limit) if expected else super().stays_within(event, epsilon, delta)

    def _clear(self, limit: tuple[float, float]) -> bool:
        """Find, by halving, how many of the announced events fit; whether the first one does."""
        epsilon, delta = limit
        ahead = min(len(self._announced), _BLOCK)
        while ahead:
            ledger = self._ledger.copy()
            for _, event in zip(range(ahead), self._announced, strict=False):
                ledger.record(event)
            if self._accountant.epsilon(ledger, delta) <= epsilon:
                self._cleared[limit] = ahead
                return True
            ahead //= 2
        return False
