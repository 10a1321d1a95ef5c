"""The exact Gaussian figure of a ledger while it grows: one number per release."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from monitors import checks
from monitors.accountant import Tracker
from monitors.events import DisjointEvent, PrivacyEvent
from monitors.gaussian import gaussian_delta, gaussian_epsilon
from monitors.terms import gather

if TYPE_CHECKING:
    from monitors.zcdp import ZCDPAccountant


class ZCDPTracker(Tracker):
    """Keeps ``sum 1 / sigma^2``; falls back to the whole ledger once it holds something else than Gaussians.

    Args:
        accountant: Whose figures to give.
    """

    def __init__(self, accountant: ZCDPAccountant) -> None:
        super().__init__(accountant)
        self._mu_squared = 0.0
        self._partitions: dict[int, float] = {}
        self._only_gaussians = True

    def add(self, event: PrivacyEvent, count: int = 1) -> None:
        """Count ``count`` more releases of ``event``."""
        total, partition = self._with(event, count)
        super().add(event, count)
        self._only_gaussians = self._only_gaussians and math.isfinite(total)
        self._mu_squared = total
        if isinstance(event, DisjointEvent):
            self._partitions[event.partition] = partition

    def epsilon(self, delta: float) -> float:
        """Epsilon at ``delta`` of all that was added."""
        checks.open_unit(delta=delta)
        if not self._only_gaussians:
            return super().epsilon(delta)
        return gaussian_epsilon(math.sqrt(self._mu_squared), delta)

    def delta(self, epsilon: float) -> float:
        """Delta at ``epsilon`` of all that was added."""
        checks.non_negative(epsilon=epsilon)
        if not self._only_gaussians:
            return super().delta(epsilon)
        return gaussian_delta(math.sqrt(self._mu_squared), epsilon)

    def stays_within(self, event: PrivacyEvent, epsilon: float, delta: float) -> bool:
        """Whether one more release of ``event`` leaves epsilon at ``delta`` at or below ``epsilon``."""
        if self.epsilon_with(event, delta) <= epsilon:
            return True
        return super().stays_within(event, epsilon, delta)

    def epsilon_with(self, event: PrivacyEvent, delta: float, count: int = 1) -> float:
        """Epsilon at ``delta`` if ``count`` more releases of ``event`` followed; nothing is added."""
        total, _ = self._with(event, count)
        if not (self._only_gaussians and math.isfinite(total)):
            return super().epsilon_with(event, delta, count)
        return gaussian_epsilon(math.sqrt(total), delta)

    def delta_with(self, event: PrivacyEvent, epsilon: float, count: int = 1) -> float:
        """Delta at ``epsilon`` if ``count`` more releases of ``event`` followed; nothing is added."""
        total, _ = self._with(event, count)
        if not (self._only_gaussians and math.isfinite(total)):
            return super().delta_with(event, epsilon, count)
        return gaussian_delta(math.sqrt(total), epsilon)

    def _with(self, event: PrivacyEvent, count: int) -> tuple[float, float]:
        """The sum after ``count`` more of ``event`` (infinite: no Gaussians), and its partition's share."""
        disjoint = isinstance(event, DisjointEvent)
        terms = gather([(event, 1 if disjoint else count)])
        if not terms.only_unsampled or terms.unprotected:
            return math.inf, math.inf
        if not isinstance(event, DisjointEvent):
            return self._mu_squared + terms.mu_squared, terms.mu_squared
        before = self._partitions.get(event.partition, 0.0)
        after = max(before, terms.mu_squared)
        return self._mu_squared + (after - before), after
