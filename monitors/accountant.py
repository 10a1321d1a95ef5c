"""The accountant interface, the registry of accountants, and the tracker that follows a growing ledger."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import ClassVar

from monitors.events import PrivacyEvent
from monitors.ledger import Ledger
from monitors.registry import Registry
from monitors.release_histogram import ReleaseHistogram
from monitors.terms import Rows

#: Default delta.
DEFAULT_DELTA = 1e-5

#: Accountants of other libraries -> what to use here.
ELSEWHERE: Mapping[str, str] = {
    "prv": "'pld' composes privacy losses numerically, as PRV accountants do; use 'pld'",
    "gdp": "its central limit theorem is an approximation that can understate epsilon; use 'pld', which is a bound",
    "moments": "the moments accountant is 'rdp'; use 'rdp'",
}

#: Rows of a ledger up to which a tracker states the accountant's own figure; of a longer one it states a bound.
MOST_ROWS = 1000

ACCOUNTANTS: Registry[type[Accountant]] = Registry("accountant", ELSEWHERE)


class Accountant(ABC):
    """Turns a ledger into a privacy guarantee. Stateless: one accountant serves any number of ledgers.

    A subclass registered with ``ACCOUNTANTS.register(name)`` can be used by that name in ``privacy_spent``,
    calibration, monitors and the command line.
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
        """Smallest delta, in [0, 1], that this accountant can prove at ``epsilon`` (at least 0)."""

    def tracker(self) -> Tracker:
        """An object that follows a growing ledger, more cheaply than evaluating the whole ledger each time."""
        return Tracker(self)

    def coarse(self) -> Accountant:
        """An accountant for plots: its figures are also upper bounds, slightly larger but cheaper to compute.

        Returns ``self`` unless a subclass has a cheaper one.
        """
        return self


class Tracker:
    """Follows a growing ledger by recomputing each figure; faster accountants return a subclass.

    Guarantees: every figure is a valid bound, and depends on the releases alone, not on what was asked before. Of a
    ledger of more than ``MOST_ROWS`` different rows, ``epsilon``, ``delta`` and ``within`` state the figure of its
    histogram (see ``ReleaseHistogram``), mostly less than 0.5 % larger, so that their cost does not grow. ``tighten``
    gives the accountant's own.

    Args:
        accountant: The accountant that computes the figures.

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
        self._histogram = ReleaseHistogram()
        self._known: dict[float, float] = {}  # epsilon by delta, until the next release

    def add(self, event: PrivacyEvent, count: int = 1) -> None:
        """Count ``count`` more releases of ``event``."""
        self._ledger.record(event, count)
        self._histogram.add(event, count)
        self._known.clear()

    def prepare(self, events: Iterable[PrivacyEvent]) -> None:
        """Announce upcoming events, so that they can be evaluated as one vector."""
        del events

    def tighten(self, delta: float) -> None:
        """Make epsilon at ``delta`` as tight as the accountant's own until the next release; may be slow."""
        self._known[delta] = self._accountant.epsilon(self._ledger, delta)

    def epsilon(self, delta: float) -> float:
        """Epsilon at ``delta`` of all added releases."""
        if delta not in self._known:
            self._known[delta] = self._accountant.epsilon(self._rows(), delta)
        return self._known[delta]

    def delta(self, epsilon: float) -> float:
        """Delta at ``epsilon`` of all added releases."""
        return self._accountant.delta(self._rows(), epsilon)

    def stays_within(self, event: PrivacyEvent, epsilon: float, delta: float) -> bool:
        """Whether one more release of ``event`` leaves epsilon at ``delta`` at or below ``epsilon``.

        Uses the accountant's own figure, so that a run calibrated to the limit can finish.
        """
        return self._fits([(event, 1)], epsilon, delta)

    def within(self, rows: Rows, epsilon: float, delta: float) -> bool:
        """Whether all of ``rows``, as further releases, certainly leave epsilon at ``delta`` at or below ``epsilon``.

        An upper bound decides, so that the answer is cheap: near the limit, it may be False for releases that fit.
        """
        return self._accountant.epsilon(self._rows(rows), delta) <= epsilon

    def epsilon_with(self, event: PrivacyEvent, delta: float, count: int = 1) -> float:
        """Epsilon at ``delta`` after ``count`` hypothetical further releases of ``event``; nothing is added."""
        return self._accountant.epsilon(self._ledger.copy().record(event, count), delta)

    def delta_with(self, event: PrivacyEvent, epsilon: float, count: int = 1) -> float:
        """Delta at ``epsilon`` after ``count`` hypothetical further releases of ``event``; nothing is added."""
        return self._accountant.delta(self._ledger.copy().record(event, count), epsilon)

    def _rows(self, further: Rows = ()) -> Rows:
        """The releases and ``further`` ones, or a histogram that costs at least as much."""
        return self._histogram.with_rows(further) if self._is_long else self._ledger_with(further)

    def _fits(self, further: Rows, epsilon: float, delta: float) -> bool:
        """Whether ``further`` releases leave epsilon within ``epsilon`` by the accountant's own figure."""
        if self._is_long and self._accountant.epsilon(self._rows(further), delta) <= epsilon:
            return True
        return self._accountant.epsilon(self._ledger_with(further), delta) <= epsilon

    @property
    def _is_long(self) -> bool:
        return len(self._ledger) > MOST_ROWS

    def _ledger_with(self, further: Rows) -> Ledger:
        after = self._ledger.copy()
        for event, count in further:
            after.record(event, count)
        return after


_TOGETHER = 256  # most rows whose events are evaluated as one vector


class LedgerFollower:
    """Passes the rows of a ledger that grows on to a tracker, each release once.

    Args:
        tracker: Receives the releases.
        ledger: What is followed; its last row may grow.
    """

    def __init__(self, tracker: Tracker, ledger: Ledger) -> None:
        self.tracker, self.ledger = tracker, ledger
        self._row, self._seen = 0, 0

    def read(self) -> Tracker:
        """The tracker, with everything that is on the ledger now."""
        new = self.ledger.rows_from(self._row)
        for start in range(0, len(new), _TOGETHER):
            block = new[start : start + _TOGETHER]
            if len(block) > 1:
                self.tracker.prepare(event for event, _ in block)
            for event, count in block:
                if count > self._seen:
                    self.tracker.add(event, count - self._seen)
                self._row, self._seen = self._row + 1, 0
        if self._row:
            # the last row may still grow
            self._row -= 1
            self._seen = self.ledger.rows_from(self._row)[0][1]
        return self.tracker
