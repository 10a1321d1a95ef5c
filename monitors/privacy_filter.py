"""Privacy filters: budgets that stay valid when each release is chosen based on earlier outputs."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from monitors import checks
from monitors.conversion import Floats
from monitors.errors import BudgetExceededError
from monitors.events import PrivacyEvent, ViolationEvent
from monitors.ledger import Ledger
from monitors.locks import OwnLock
from monitors.rdp import RDPAccountant
from monitors.relation import relation_of
from monitors.renyi import curves_of
from monitors.run_view import RunView
from monitors.terms import Rows

_ORDERS = 1.0 + np.geomspace(1e-3, 1e5, 4000)


class PrivacyFilter:
    """Allows releases while the sum of their Renyi divergences, at ONE order fixed in advance, is within the budget.

    An accountant's epsilon holds for a schedule that was fixed in advance. If multipliers, rates, or the stopping time
    depend on released outputs, only the sum at an order fixed in advance is a valid bound (Feldman and Zrnic 2021;
    Lécuyer 2021). Partitions get no discount: each event is charged separately.

    Args:
        max_epsilon: Epsilon of the guarantee, positive.
        delta: Strictly between 0 and 1.
        order: The Renyi order, above 1. Default: the best one for ``plan``, or for unsampled Gaussian releases.
        plan: The expected releases; they only determine the order.

    Raises:
        ValueError: The budget at this order is empty; the message says what to do.

    Example:
        >>> from monitors import GaussianEvent
        >>> filter_ = PrivacyFilter(3.0, 1e-5)
        >>> filter_.charge(GaussianEvent(10.0), 40)
        >>> filter_.allows(GaussianEvent(1.0)), round(filter_.spent_share, 2)
        (False, 0.89)
    """

    def __init__(
        self, max_epsilon: float, delta: float, *, order: float | None = None, plan: Ledger | None = None
    ) -> None:
        checks.positive(max_epsilon=max_epsilon)
        checks.open_unit(delta=delta)
        if order is not None and plan is not None:
            raise ValueError("give either order or plan, not both: the plan only determines the order")
        if plan is not None:
            order = RDPAccountant().epsilon_and_order(plan, delta)[1]
        if order is None or (plan is not None and not 1 < order < math.inf):
            order = _order_for_gaussians(max_epsilon, delta)
        if not (math.isfinite(order) and order > 1):
            raise ValueError(f"order must be a finite number above 1, got {order!r}")
        self.max_epsilon, self.delta, self.order = float(max_epsilon), float(delta), float(order)
        self.budget = float(_budget(self.max_epsilon, self.delta, np.array([self.order]))[0])
        if self.budget <= 0:
            raise ValueError(
                f"at order {order:g} there is no budget for epsilon {max_epsilon:g} at delta {delta:g}: "
                "omit the order, or raise it"
            )
        self.spent = 0.0
        self.ledger = Ledger()
        self._lock = OwnLock()

    @property
    def spent_share(self) -> float:
        """Spent share of the budget; above 1 only if releases were counted that did not fit."""
        return self.spent / self.budget

    def cost(self, event: PrivacyEvent) -> float:
        """Renyi divergence of one release of ``event`` at the filter's order."""
        return float(curves_of([event], np.array([self.order]))[0, 0])

    def allows(self, event: PrivacyEvent, count: int = 1) -> bool:
        """Whether ``count`` releases of ``event`` fit into the remaining budget."""
        checks.positive_int(count=count)
        return self.spent + count * self.cost(event) <= self.budget

    def charge(self, event: PrivacyEvent, count: int = 1) -> None:
        """Charge ``count`` releases of ``event``; call this BEFORE the release.

        A violation has already happened and cannot be refused: it is recorded, and nothing fits from then on.

        Raises:
            BudgetExceededError: The releases do not fit. Nothing is charged, and nothing may be released.
        """
        with self._lock:
            if not isinstance(event, ViolationEvent) and not self.allows(event, count):
                raise BudgetExceededError(
                    f"{count} x {event!r} would bring the spent share of the budget (epsilon {self.max_epsilon:g} at "
                    f"delta {self.delta:g}, order {self.order:g}) from {self.spent_share:.4f} to "
                    f"{(self.spent + count * self.cost(event)) / self.budget:.4f}. Add noise, take fewer steps or stop."
                )
            self.count(event, count)

    def count(self, event: PrivacyEvent, count: int = 1) -> None:
        """Charge ``count`` releases that have happened already, whether they fit or not.

        If they do not fit, nothing fits from then on.
        """
        checks.positive_int(count=count)
        with self._lock:
            self.spent += count * self.cost(event)
            self.ledger.record(event, count)


class BudgetGuard:
    """A callback that keeps runs within one ``PrivacyFilter``, for schedules that react to released outputs.

    It is called after all other callbacks of a step, which may change the schedule. Further runs, of the same model or
    of other models on the same data, are charged to the same budget.

    Args:
        privacy_filter: The budget; it must be unused.

    Raises:
        ValueError: The filter has already been charged.
    """

    #: Called after all other callbacks before a step, so that none of them changes a step that was allowed.
    asked_last: ClassVar[bool] = True

    def __init__(self, privacy_filter: PrivacyFilter) -> None:
        if privacy_filter.spent:
            raise ValueError(f"the filter must be unused, but {privacy_filter.spent_share:.4f} of its budget is spent")
        self.filter = privacy_filter
        #: For each ledger seen so far: the next row to read, and how many of its releases are counted already.
        self._progress: dict[int, tuple[Ledger, int, int]] = {}

    def on_train_begin(self, run: RunView) -> None:
        """Charge the releases that are already on the ledger.

        Raises:
            BudgetExceededError: They alone exceed the budget.
            UnsupportedEventError: No relation of neighbours covers this training and what was charged before.
        """
        self._read(run)
        if run.step < run.planned_steps:
            relation_of([*self.filter.ledger, (run.event(run.step), 1)])
        self.on_train_step_begin(run)

    def on_train_step_begin(self, run: RunView) -> None:
        """Stop before a step that does not fit."""
        self._read(run)
        if run.step < run.planned_steps and not self.filter.allows(run.event(run.step)):
            violated = self.filter.ledger.violations
            spent = f"void: {violated[0]}" if violated else f"{self.filter.spent_share:.2%} spent"
            run.stop(
                f"the next step does not fit into the privacy filter (epsilon {self.filter.max_epsilon:g} at delta "
                f"{self.filter.delta:g}, {spent}); {run.step} of {run.planned_steps} steps are done"
            )

    def on_train_step_end(self, run: RunView) -> None:
        """Charge the recorded releases."""
        self._read(run)

    def on_train_end(self, run: RunView) -> None:
        """Charge the recorded releases."""
        self._read(run)

    def on_train_epoch_begin(self, run: RunView) -> None:
        """Nothing to do."""

    def on_train_epoch_end(self, run: RunView) -> None:
        """Nothing to do."""

    def on_eval_begin(self, run: RunView) -> None:
        """Nothing to do."""

    def on_eval_end(self, run: RunView) -> None:
        """Nothing to do."""

    def within_limits(self, run: RunView, rows: Rows) -> bool:
        """Whether all of ``rows``, as further releases of ``run``, fit into the filter together."""
        self._read(run)
        further = list(rows)
        costs = curves_of([event for event, _ in further], np.array([self.filter.order]))[:, 0]
        cost = float(costs @ np.array([count for _, count in further]))
        return self.filter.spent + cost <= self.filter.budget

    def _read(self, run: RunView) -> None:
        """Count what is new on the ledgers of this training and of earlier ones, which callers may release more on."""
        if self._progress.get(id(run.ledger), (None,))[0] is not run.ledger:  # a copied guard has copies of ledgers
            self._progress = {id(known): (known, row, seen) for known, row, seen in self._progress.values()}
            self._progress[id(run.ledger)] = run.ledger, 0, 0
        excess: tuple[PrivacyEvent, int] | None = None
        for key, (ledger, row, seen) in list(self._progress.items()):
            for event, count in ledger.rows_from(row):
                new, seen = count - seen, 0
                if new > 0:
                    fits = isinstance(event, ViolationEvent) or self.filter.allows(event, new)
                    excess = excess if fits else (event, new)
                    self.filter.count(event, new)
                self._progress[key] = ledger, row, count  # the last row may still grow
                row += 1
        if excess is not None:
            raise BudgetExceededError(
                f"{excess[1]} x {excess[0]!r} is on the ledger and exceeds the privacy filter (epsilon "
                f"{self.filter.max_epsilon:g} at delta {self.filter.delta:g}), which counts it: nothing fits any more"
            )


def _budget(epsilon: float, delta: float, orders: Floats) -> Floats:
    """For each order, the Renyi divergence that converts to exactly (epsilon, delta); see ``ImprovedConversion``."""
    budget: Floats = epsilon - np.log1p(-1 / orders) + (math.log(delta) + np.log(orders)) / (orders - 1)
    return budget


def _order_for_gaussians(epsilon: float, delta: float) -> float:
    # the Renyi curve of a Gaussian is proportional to the order
    return float(_ORDERS[int(np.argmax(_budget(epsilon, delta, _ORDERS) / _ORDERS))])
