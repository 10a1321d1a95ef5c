"""What every accountant can do, the registry of them, and the statement of what was spent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import ClassVar

from monitors.events import PrivacyEvent
from monitors.ledger import Ledger
from monitors.registry import Registry
from monitors.terms import Rows

#: Delta where none is stated.
DEFAULT_DELTA = 1e-5

#: Accountants of other libraries -> what to use here.
ELSEWHERE: Mapping[str, str] = {
    "prv": "'pld' composes privacy losses numerically, as PRV accountants do; use 'pld'",
    "gdp": "its central limit theorem is an approximation that can understate epsilon; use 'pld', which is a bound",
    "moments": "the moments accountant is 'rdp'; use 'rdp'",
}

ACCOUNTANTS: Registry[type[Accountant]] = Registry("accountant", ELSEWHERE)


class Accountant(ABC):
    """Turns a ledger into a privacy guarantee. Stateless: one accountant serves any number of ledgers.

    A subclass registers itself with ``ACCOUNTANTS.register(name)`` and is then known to ``privacy_spent``, calibration,
    monitors and the command line by that name.
    """

    name: ClassVar[str]

    @abstractmethod
    def epsilon(self, ledger: Rows, delta: float) -> float:
        """Smallest epsilon that this accountant can prove at ``delta``.

        Args:
            ledger: A ``Ledger``, or any ``(event, count)`` pairs.
            delta: Strictly between 0 and 1.

        Returns:
            At least 0; infinite if something was released without privacy or a violation was recorded.

        Raises:
            UnsupportedEventError: The accountant has no rule for an event.
            ValueError: ``delta`` is out of range.
        """

    @abstractmethod
    def delta(self, ledger: Rows, epsilon: float) -> float:
        """Smallest delta that this accountant can prove at ``epsilon`` (at least 0); in [0, 1]."""

    def tracker(self) -> Tracker:
        """An object that follows a ledger while it grows, cheaper than asking for the whole each time."""
        return Tracker(self)

    def coarse(self) -> Accountant:
        """An accountant for pictures: its figures are upper bounds too, a little larger and cheaper to compute.

        Itself, unless a subclass has a cheaper one.
        """
        return self


class Tracker:
    """Follows a growing ledger. This one recomputes; accountants that can do better return a subclass.

    Args:
        accountant: Whose figures to give.

    Example:
        >>> from monitors import GaussianEvent, ZCDPAccountant
        >>> tracker = ZCDPAccountant().tracker()
        >>> tracker.add(GaussianEvent(2.0), 4)
        >>> round(tracker.epsilon(1e-5), 3), round(tracker.epsilon_with(GaussianEvent(2.0), 1e-5), 3)
        (4.377, 4.983)
    """

    def __init__(self, accountant: Accountant) -> None:
        self._accountant = accountant
        self._ledger = Ledger()

    def add(self, event: PrivacyEvent, count: int = 1) -> None:
        """Count ``count`` more releases of ``event``."""
        self._ledger.record(event, count)

    def prepare(self, events: Iterable[PrivacyEvent]) -> None:
        """Announce events that will be asked about, so that they can be evaluated as one vector."""
        del events

    def tighten(self, delta: float) -> None:
        """Make epsilon at ``delta`` as tight as the accountant's own, which may be slow; nothing to do here."""
        del delta

    def epsilon(self, delta: float) -> float:
        """Epsilon at ``delta`` of all that was added."""
        return self._accountant.epsilon(self._ledger, delta)

    def delta(self, epsilon: float) -> float:
        """Delta at ``epsilon`` of all that was added."""
        return self._accountant.delta(self._ledger, epsilon)

    def stays_within(self, event: PrivacyEvent, epsilon: float, delta: float) -> bool:
        """Whether one more release of ``event`` leaves epsilon at ``delta`` at or below ``epsilon``.

        Decided by the accountant's own figure, so that a training calibrated to the limit runs to its end.
        """
        return self._accountant.epsilon(self._ledger.copy().record(event), delta) <= epsilon

    def epsilon_with(self, event: PrivacyEvent, delta: float, count: int = 1) -> float:
        """Epsilon at ``delta`` if ``count`` more releases of ``event`` followed; nothing is added."""
        return self._accountant.epsilon(self._ledger.copy().record(event, count), delta)

    def delta_with(self, event: PrivacyEvent, epsilon: float, count: int = 1) -> float:
        """Delta at ``epsilon`` if ``count`` more releases of ``event`` followed; nothing is added."""
        return self._accountant.delta(self._ledger.copy().record(event, count), epsilon)
