"""What every accountant can do, the registry of them, and the statement of what was spent."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from monitors import checks
from monitors.events import DisjointEvent, PoissonSampledEvent, PrivacyEvent, ViolationEvent
from monitors.ledger import Ledger
from monitors.registry import Registry
from monitors.relation import ADD_OR_REMOVE, stated_relation
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


@dataclass(frozen=True)
class PrivacySpent:
    """An (epsilon, delta) guarantee together with all that it needs to mean anything.

    Args:
        epsilon: At least 0, possibly infinite.
        delta: Strictly between 0 and 1.
        accountant: Name of the accountant that proved it.
        unit: Whose presence is hidden.
        relation: Which data sets count as neighbours.
        sampling: How the batches were drawn.
        notes: Statements that travel with the figure, such as what is not accounted for.

    Example:
        >>> print(PrivacySpent(2.5, 1e-5, "rdp", sampling="Poisson"))  # doctest: +NORMALIZE_WHITESPACE
        epsilon 2.5000 at delta 1e-05 (accountant rdp; unit: example; neighbours: add or remove one example;
        sampling: Poisson)
    """

    epsilon: float
    delta: float
    accountant: str
    unit: str = "example"
    relation: str = ADD_OR_REMOVE
    sampling: str = "unstated"
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; an infinite epsilon is the string ``"inf"``."""
        values = dataclasses.asdict(self)
        values["notes"] = list(self.notes)
        if self.epsilon == float("inf"):
            values["epsilon"] = "inf"
        return values

    def __str__(self) -> str:
        text = (
            f"epsilon {epsilon_text(self.epsilon, 4)} at delta {self.delta:g} (accountant {self.accountant}; "
            f"unit: {self.unit}; neighbours: {self.relation}; sampling: {self.sampling})"
        )
        return "; ".join([text, *self.notes])


def epsilon_text(epsilon: float, decimals: int = 3) -> str:
    """Epsilon for people, never rounded down: what is read as a guarantee must be one.

    Example:
        >>> epsilon_text(2.99951), epsilon_text(2.9981), epsilon_text(4321.2), epsilon_text(float("inf"))
        ('3.000', '2.999', '4,322', 'infinite')
    """
    if math.isinf(epsilon):
        return "infinite"
    if epsilon >= 1000:
        return f"{math.ceil(epsilon):,}"
    unit = 10**decimals
    return f"{math.ceil(epsilon * unit) / unit:.{decimals}f}"


def resolve_accountant(accountant: str | Accountant) -> Accountant:
    """The accountant of that name, or the object itself.

    Raises:
        ValueError: Unknown name; the nearest is suggested.
        TypeError: Neither a name nor an accountant.

    Example:
        >>> resolve_accountant("rdp").name
        'rdp'
    """
    if isinstance(accountant, Accountant):
        return accountant
    if not isinstance(accountant, str):
        raise TypeError(f"accountant must be a name or an Accountant, got {accountant!r}")
    from monitors import pld, rdp, zcdp  # registered on import; late, because they build on this module

    del pld, rdp, zcdp
    built: Accountant = ACCOUNTANTS.create(accountant)
    return built


def privacy_spent(
    ledger: Ledger,
    delta: float,
    accountant: str | Accountant = "rdp",
    statement: Mapping[str, str] | None = None,
) -> PrivacySpent:
    """Epsilon of a ledger with everything that it needs to mean anything.

    Args:
        ledger: What was released.
        delta: Strictly between 0 and 1.
        accountant: Name or object.
        statement: ``unit``, ``relation`` and ``sampling`` in words; what is missing is read off the ledger or is the
            default of ``PrivacySpent``. The relation is the ledger's where the events leave but one.

    Raises:
        UnsupportedEventError: No neighbour relation covers all events, or the accountant does not know one.

    Example:
        >>> from monitors import GaussianEvent
        >>> round(privacy_spent(Ledger().record(GaussianEvent(1.0)), 1e-5, "zcdp").epsilon, 3)
        4.377
    """
    checks.open_unit(delta=delta)
    chosen = resolve_accountant(accountant)
    words = {"sampling": describe_sampling(ledger), **(statement or {}), **stated_relation(ledger)}
    return PrivacySpent(chosen.epsilon(ledger, delta), delta, chosen.name, notes=ledger.caveats, **words)


def describe_sampling(ledger: Rows) -> str:
    """How the batches of a ledger were drawn, in words, read off its events.

    Example:
        >>> from monitors import GaussianEvent
        >>> describe_sampling(Ledger().record(PoissonSampledEvent(0.01, GaussianEvent(1.0))))
        'Poisson, rate 0.01'
    """
    rates, kinds = set(), []
    for event, _ in ledger:
        if isinstance(event, PoissonSampledEvent) and event.sampling_rate < 1:
            rates.add(event.sampling_rate)
        elif not isinstance(event, ViolationEvent):
            kinds.append("disjoint batches, no amplification" if isinstance(event, DisjointEvent) else "none")
    if rates:
        span = f"rate {min(rates):.6g}" if len(rates) == 1 else f"rates {min(rates):.6g} to {max(rates):.6g}"
        kinds.insert(0, f"Poisson, {span}")
    return "; ".join(dict.fromkeys(kinds)) or "nothing was released"
