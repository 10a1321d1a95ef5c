"""What a privacy report says about a training besides the figures of its ledger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dpmodel.config.card import CardSection
from monitors.accountant import DEFAULT_DELTA

if TYPE_CHECKING:
    from dpmodel.planning.release import ReleasePlan
    from dpmodel.runs.report.accesses import DataAccess
    from monitors.accountant import Accountant


@dataclass(frozen=True)
class ReportSubject:
    """A training as a report describes it, whether it was configured or written in Python.

    Args:
        release: The mechanisms and what each step releases.
        norm_bound: The norm bound of the first step.
        planned_steps: Steps that were planned.
        delta: The delta at which epsilon is stated.
        accountant: The accountant that states epsilon.
        statement: Unit, relation and sampling in words; None for those of ``release``.
        target_epsilon: What the noise was solved for, or None.
        public_constants: Settings that are treated as public constants.
        rows_by_position: Settings that choose the examples by their position among all rows.
        accesses: Accesses to data that are known from the configuration.
        card: What the user declares for the privacy card.
    """

    release: ReleasePlan
    norm_bound: float
    planned_steps: int
    delta: float = DEFAULT_DELTA
    accountant: str | Accountant = "rdp"
    statement: Mapping[str, str] | None = None
    target_epsilon: float | None = None
    public_constants: tuple[str, ...] = ()
    rows_by_position: tuple[str, ...] = ()
    accesses: tuple[DataAccess, ...] = ()
    card: CardSection = field(default_factory=CardSection)
