"""What a ledger allows an attacker: the largest true-positive rate at a false-positive rate, and the largest area."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from monitors.errors import UnsupportedEventError
from monitors.ledger import Ledger
from monitors.rdp import RDPAccountant
from monitors.trade_off import TradeOffCurve

#: Epsilons at which the curve of an accountant without losses is known.
_EPSILONS = np.concatenate([np.linspace(0.0, 2.0, 21), np.linspace(2.5, 23.0, 42)])

#: False-positive rates between which the area is bounded from above.
_RATES = np.unique(np.concatenate([np.geomspace(1e-6, 0.5, 120), np.linspace(0.0, 1.0, 201)]))


@dataclass(frozen=True)
class Limit:
    """Limits that hold for every attack if the ledgers are right.

    Args:
        curves: Trade-off curves of the ledgers; the attacker may have the best of them. Empty: nothing is limited.
        hops: Number of neighbours in a row between the two networks that are told apart: 1 if an example was added, 2
            if one was put in the place of another.

    References:
        Dong, Roth and Su 2022, "Gaussian Differential Privacy" (proposition 2.5 and theorem 2.14).

    Example:
        >>> from monitors import GaussianEvent
        >>> limit = Limit.of([Ledger().record(GaussianEvent(1.0))])
        >>> round(limit.true_positive_rate(0.01), 4), round(limit.area, 2)
        (0.0924, 0.76)
    """

    curves: tuple[TradeOffCurve, ...]
    hops: int = 1

    @classmethod
    def of(cls, ledgers: Iterable[Ledger], hops: int = 1) -> Limit:
        """The limit of trainings with these ledgers; none if one of them has no guarantee that an accountant knows."""
        different = {ledger.digest(): ledger for ledger in ledgers}
        curves = [_curve(ledger) for ledger in different.values()]
        known = tuple(curve for curve in curves if curve is not None)
        return cls(known if len(known) == len(curves) else (), hops)

    @property
    def exists(self) -> bool:
        """Whether anything is limited."""
        return bool(self.curves)

    def true_positive_rate(self, false_positive_rate: float) -> float:
        """The largest true-positive rate; 1 if nothing is limited.

        Args:
            false_positive_rate: In [0, 1].
        """
        return max((self._reached(curve, false_positive_rate) for curve in self.curves), default=1.0)

    def _reached(self, curve: TradeOffCurve, rate: float) -> float:
        for _ in range(self.hops):
            if not rate < 1.0:
                return 1.0
            rate = curve.true_positive_rate(max(rate, 1e-12))
        return rate

    @property
    def area(self) -> float:
        """The largest area under the ROC curve, rounded up."""
        if not self.exists:
            return 1.0
        reached = np.array([self.true_positive_rate(float(rate)) for rate in _RATES[1:]])
        return min(1.0, float(reached @ np.diff(_RATES)))


def _curve(ledger: Ledger) -> TradeOffCurve | None:
    try:
        return TradeOffCurve.of(ledger)
    except UnsupportedEventError:
        try:
            deltas = np.array([RDPAccountant().delta(ledger, float(epsilon)) for epsilon in _EPSILONS])
        except UnsupportedEventError:
            return None
        return TradeOffCurve(_EPSILONS, deltas) if deltas[-1] < 1.0 else None
