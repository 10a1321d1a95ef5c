"""The privacy monitor: a callback that reads the run's ledger, prints epsilon and stops before exceeding the budget."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

from monitors import checks
from monitors.accountant import DEFAULT_DELTA, Accountant, LedgerFollower, Tracker
from monitors.calibration import max_steps
from monitors.claims import Claims
from monitors.ledger import VOID, Ledger
from monitors.limits import Limit, limits_of
from monitors.relation import stated_relation
from monitors.run_view import RunView
from monitors.spent import PrivacySpent, epsilon_text
from monitors.terms import Rows

_LOOK_AHEAD = 128  # steps whose events are evaluated together
_STATEMENT = ("unit", "relation", "sampling")


class PrivacyMonitor:
    """Watches a run's ledger. It stores no noise multiplier, so it cannot disagree with what was recorded.

    Guarantees: no limit is exceeded, because a step whose event would exceed it is not taken. Numbers that contradict
    the run raise an error before anything is spent. The printed count is the number of completed steps.

    Args:
        accountant: Accountant that computes epsilon from the ledger.
        claims: Numbers that the user states about the run; used to check the run, or to plan without one.
        max_eps: Largest epsilon at ``target_delta``; None for no limit.
        target_delta: Delta at which epsilon is shown and limited.
        max_delta: Largest delta at ``target_eps``; None for no limit.
        target_eps: Epsilon at which delta is shown and limited.
        per_print_times: Number of steps between two printed lines, at least 1.
        plans_sampled: Whether planning without a run assumes Poisson sampling (True) or shuffled epochs (False).
    """

    #: Called after all other callbacks before a step, so that none of them changes a step that was allowed.
    asked_last: ClassVar[bool] = True

    def __init__(
        self,
        accountant: Accountant,
        claims: Claims | None = None,
        *,
        max_eps: float | None = None,
        target_delta: float = DEFAULT_DELTA,
        max_delta: float | None = None,
        target_eps: float | None = None,
        per_print_times: int = 50,
        plans_sampled: bool = True,
    ) -> None:
        checks.positive_int(per_print_times=per_print_times)
        self.accountant = accountant
        self.claims = claims or Claims()
        self.target_delta = target_delta
        self.target_eps = target_eps
        self.limits = limits_of(max_eps, target_delta, max_delta, target_eps)
        self.per_print_times = per_print_times
        self._plans_sampled = plans_sampled
        self._run: RunView | None = None
        self._forget()

    def _forget(self) -> None:
        self._tracker: Tracker = self.accountant.tracker()
        self._follower: LedgerFollower | None = None
        self._prepared_to = -1

    def attach(self, run: RunView) -> None:
        """Watch ``run`` from now on; existing rows of its ledger are counted.

        Raises:
            MonitorMismatchError: A stated number contradicts the run.
        """
        self.claims.check(run.facts)
        self._run = run
        self._forget()
        self._read()

    # what was spent

    def epsilon(self) -> float:
        """Current epsilon of the ledger at ``target_delta``; cheap ('pld': up to a few tenths of a second)."""
        self._read()
        return self._tracker.epsilon(self.target_delta)

    def delta(self) -> float:
        """Current delta of the ledger at ``target_eps``.

        Raises:
            ValueError: ``target_eps`` was not given.
        """
        if self.target_eps is None:
            raise ValueError("delta is a function of epsilon: create the monitor with target_eps")
        self._read()
        return self._tracker.delta(self.target_eps)

    def privacy_spent(self) -> PrivacySpent:
        """Epsilon together with everything needed to interpret it."""
        run = self._attached()
        words = {key: run.statement[key] for key in _STATEMENT if key in run.statement} | stated_relation(run.ledger)
        return PrivacySpent(self.epsilon(), self.target_delta, self.accountant.name, notes=run.ledger.caveats, **words)

    # planning

    def max_steps(self) -> int:
        """Number of steps, counted from the model's first, that fit into the limits; 0 if none does.

        Uses the attached run if there is one, else the stated numbers (Poisson sampling at rate
        ``batch_size / num_samples``, or shuffled epochs if the accountant supports no sampled events).

        Raises:
            ValueError: No limit was given, or a number that planning needs is missing; the message names it.
            CalibrationError: More than ten million steps fit.
        """
        if not self.limits:
            raise ValueError("planning needs a limit: set max_eps (with target_delta), or max_delta with target_eps")
        done, make_ledger = self._plan()
        fitting = [max_steps(limit.epsilon, limit.delta, make_ledger, self.accountant) for limit in self.limits]
        return done + min(fitting)

    def max_epoch_suggest(self) -> int:
        """Whole epochs, counted from the model's first step, that fit into the limits; see ``max_steps``."""
        per_epoch = self.claims.steps_per_epoch if self._run is None else self._run.steps_per_epoch
        return self.max_steps() // per_epoch

    def _plan(self) -> tuple[int, Callable[[int], Ledger]]:
        """Number of completed steps, and a function from a number of further steps to the ledger after them."""
        run = self._run
        if run is None:
            return 0, lambda steps: self.claims.ledger(steps, sampled=self._plans_sampled)
        longest, done = run.ledger.copy(), run.step
        before = longest.total

        def make_ledger(steps: int) -> Ledger:
            for index in range(longest.total - before, steps):
                longest.record(run.event(done + index))
            return longest.head(before + steps)

        return done, make_ledger

    # hooks

    def on_train_begin(self, run: RunView) -> None:
        """Check the stated numbers, count the ledger's existing rows, and stop if not even one step fits."""
        self.attach(run)
        self._guard(run)

    def on_train_step_begin(self, run: RunView) -> None:
        """Stop before a step that would exceed a limit."""
        self._guard(run)

    def on_train_step_end(self, run: RunView) -> None:
        """Print what was spent every ``per_print_times`` steps."""
        if run.step % self.per_print_times == 0:
            run.say(self._line(run))

    def on_train_end(self, run: RunView) -> None:
        """Print what was spent."""
        if run.step % self.per_print_times != 0:
            run.say(self._line(run))

    def on_train_epoch_begin(self, run: RunView) -> None:
        """Nothing to do."""

    def on_train_epoch_end(self, run: RunView) -> None:
        """Nothing to do."""

    def on_eval_begin(self, run: RunView) -> None:
        """Nothing to do."""

    def on_eval_end(self, run: RunView) -> None:
        """Nothing to do."""

    def within_limits(self, run: RunView, rows: Rows) -> bool:
        """Whether all of ``rows``, as further releases of ``run``, certainly leave every limit kept.

        A training announces only blocks of steps for which this holds: if it is killed, a whole block is charged.
        """
        if self._run is not run:
            self.attach(run)
        self._read()
        further = list(rows)
        return all(self._tracker.within(further, limit.epsilon, limit.delta) for limit in self.limits)

    # inside

    def _attached(self) -> RunView:
        if self._run is None:
            raise ValueError("the monitor is not attached to a run: pass it to fit as a callback, or call attach(run)")
        return self._run

    def _read(self) -> None:
        """Count the rows added to the ledger since the last call."""
        if self._follower is None:
            self._follower = LedgerFollower(self._tracker, self._attached().ledger)
        self._follower.read()

    def _guard(self, run: RunView) -> None:
        if not self.limits or run.step >= run.planned_steps:
            return
        self._read()
        self._look_ahead(run)
        event = run.event(run.step)
        for limit in self.limits:
            if not self._tracker.stays_within(event, limit.epsilon, limit.delta):
                run.stop(self._reason(run, limit, self._tracker.epsilon_with(event, limit.delta)))
                return

    def _look_ahead(self, run: RunView) -> None:
        if run.step > self._prepared_to:
            last = min(run.step + _LOOK_AHEAD, run.planned_steps)
            self._tracker.prepare([run.event(step) for step in range(run.step, last)])
            self._prepared_to = last - 1

    def _reason(self, run: RunView, limit: Limit, after: float) -> str:
        figure = "infinity" if math.isinf(after) else epsilon_text(after, 4)
        remedy = "Raise the limit, add noise, or train for fewer steps: `dpmodel budget` finds numbers that fit."
        return (
            f"the next step would bring epsilon to {figure} at delta {limit.delta:g}, exceeding {limit.in_words} "
            f"(accountant {self.accountant.name}); {run.step} of {run.planned_steps} steps are done. {remedy}"
        )

    def _line(self, run: RunView) -> str:
        if run.step >= run.planned_steps:
            self._read()
            self._tracker.tighten(self.target_delta)  # the final figure is the one that users keep
        epsilon = epsilon_text(self.epsilon(), 4)
        text = f"step {run.step}: epsilon {epsilon} at delta {self.target_delta:g} ({self.accountant.name})"
        if self.target_eps is not None:
            text += f", delta {self.delta():.3g} at epsilon {self.target_eps:g}"
        if run.ledger.violations:
            text += f"; {VOID}: {run.ledger.violations[0]}"
        return text
