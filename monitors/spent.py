"""The privacy spent: epsilon of a ledger by any accountant, with everything needed to interpret it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from monitors import checks
from monitors import pld as _pld  # noqa: F401  (importing the accountants registers them)
from monitors import rdp as _rdp  # noqa: F401
from monitors import zcdp as _zcdp  # noqa: F401
from monitors.accountant import ACCOUNTANTS, Accountant
from monitors.events import CorrelatedEvent, DisjointEvent, PoissonSampledEvent, ViolationEvent
from monitors.ledger import Ledger
from monitors.relation import ADD_OR_REMOVE, stated_relation
from monitors.terms import Rows


@dataclass(frozen=True)
class PrivacySpent:
    """An (epsilon, delta) guarantee together with everything needed to interpret it.

    Args:
        epsilon: At least 0, possibly infinite.
        delta: Strictly between 0 and 1.
        accountant: Name of the accountant that proved it.
        unit: The unit that is protected.
        relation: Which data sets count as neighbours.
        sampling: How the batches were drawn.
        notes: Statements that accompany the figure, such as what is not accounted for.

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
    """Epsilon as text, never rounded down, because readers take it as a guarantee.

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
    """The accountant registered under a name; an accountant object is returned as it is.

    Raises:
        ValueError: The name is unknown; the message suggests the nearest.
        TypeError: ``accountant`` is neither a name nor an accountant.

    Example:
        >>> resolve_accountant("rdp").name
        'rdp'
    """
    if isinstance(accountant, Accountant):
        return accountant
    if not isinstance(accountant, str):
        raise TypeError(f"accountant must be a name or an Accountant, got {accountant!r}")
    built: Accountant = ACCOUNTANTS.create(accountant)
    return built


def privacy_spent(
    ledger: Ledger,
    delta: float,
    accountant: str | Accountant = "rdp",
    statement: Mapping[str, str] | None = None,
) -> PrivacySpent:
    """Epsilon of a ledger, with everything needed to interpret it.

    Args:
        ledger: What was released.
        delta: Strictly between 0 and 1.
        accountant: Name or object.
        statement: ``unit``, ``relation`` and ``sampling``, in words; missing ones are derived from the ledger or take
            the defaults of ``PrivacySpent``. If the events allow only one relation, that one is stated.

    Raises:
        UnsupportedEventError: No neighbour relation covers all events, or the accountant does not know an event.

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
    """How the batches of a ledger were drawn, in words, derived from its events.

    Example:
        >>> from monitors import GaussianEvent
        >>> describe_sampling(Ledger().record(PoissonSampledEvent(0.01, GaussianEvent(1.0))))
        'Poisson, rate 0.01'
    """
    rates, kinds = set(), []
    for event, _ in ledger:
        if isinstance(event, CorrelatedEvent):
            kinds.append(_correlated(event))
        elif isinstance(event, PoissonSampledEvent) and event.sampling_rate < 1:
            rates.add(event.sampling_rate)
        elif not isinstance(event, ViolationEvent):
            kinds.append("disjoint batches, no amplification" if isinstance(event, DisjointEvent) else "none")
    if rates:
        span = f"rate {min(rates):.6g}" if len(rates) == 1 else f"rates {min(rates):.6g} to {max(rates):.6g}"
        kinds.insert(0, f"Poisson, {span}")
    return "; ".join(dict.fromkeys(kinds)) or "nothing was released"


def _correlated(event: CorrelatedEvent) -> str:
    sampled = event.event
    drawn = (
        f"cyclic Poisson, rate {sampled.sampling_rate:.6g} of a group"
        if isinstance(sampled, PoissonSampledEvent)
        else "fixed order, no amplification"
    )
    return f"{drawn}, noise correlated over {event.bands} steps"
