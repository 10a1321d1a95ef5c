"""One private step: Abadi et al. 2016, algorithm 1, with the ledger written before the result is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from dpmodel.distributed.ranks import ALONE, Ranks
from dpmodel.planning.release import ReleasePlan
from dpmodel.training.batch_check import Additivity
from dpmodel.training.guard import UpdateGuard
from dpmodel.training.update import Update
from dpmodel.training.update_graph import UpdateGraph
from mechanisms.engines.base import ClippedSum, Engine
from mechanisms.engines.batch import Batch
from mechanisms.engines.parameters import FlatLayout
from mechanisms.engines.power_iterations import PowerIterations
from mechanisms.engines.tally import Tally
from monitors import checks
from monitors.errors import NonFiniteGradientsError, UnprotectedUpdateError
from monitors.ledger import Ledger

#: Training stops after this many steps in a row in which at least half of the units had no finite gradient.
MAX_BROKEN_STEPS = 20


@dataclass
class PrivateStep:
    """Updates the network by one drawn batch.

    Args:
        network: Trained in place.
        loss_fn: The user's loss.
        optimizer: Over the network's trainable parameters.
        engine: Clipped sums.
        plan: Mechanisms and the event of each step.
        ledger: Where each event is recorded before its result is used.
        guard: Refuses updates that dpmodel did not make.
        padding: Rows of parameters, by name, whose gradient is always zero (``padding_rows``): their noise is removed,
            which is post-processing of the release.
        iterations: Power iterations of the network's spectral normalisations; None for none.
        ranks: The processes that train together; each passes its part of the batch.
    """

    network: nn.Module
    loss_fn: Callable[..., Tensor]
    optimizer: Optimizer
    engine: Engine
    plan: ReleasePlan
    ledger: Ledger
    guard: UpdateGuard
    padding: Mapping[str, Sequence[int]] = field(default_factory=dict)
    iterations: PowerIterations | None = None
    ranks: Ranks = ALONE
    broken_steps: int = field(default=0, init=False)
    left_out: int = field(default=0, init=False)  # units without a finite gradient, in all steps; private
    left_out_at: int = field(default=0, init=False)  # steps done after the first of them
    graph: UpdateGraph = field(init=False)
    _unread: tuple[int, ClippedSum] | None = field(default=None, init=False)  # the last step, if its tally is not read
    _layout: FlatLayout = field(init=False)
    _additivity: Additivity = field(init=False)
    _sum: Tensor = field(init=False)  # for all steps: allocating the size of a large network is slow

    def __post_init__(self) -> None:
        self._layout = FlatLayout.of(self.network)
        self._sum = self._layout.zeros(self._layout.size)
        self.graph = UpdateGraph(self.engine.cuda_graphs and self.ranks.size == 1)
        self._additivity = Additivity(self.network, self.loss_fn, self.engine, self.plan.clip)

    def __call__(self, batch: Batch, step: int) -> Tally:
        """Do step ``step`` on ``batch`` (possibly empty: a noise-only step).

        On a GPU, the host does not wait for the tally, which it reads before the release of the next step.

        Returns:
            The tally of the batch, not private.

        Raises:
            UnprotectedUpdateError: Something un-noised could reach the optimizer. If it may have reached released
                weights, the ledger states a violation.
            NonFiniteGradientsError: Most gradients were not finite for many steps in a row.
        """
        self.guard.check()
        if self.iterations:
            with self.guard.declared():  # they follow the released weights and the number of steps
                self.iterations.advance()
        plan = self.plan
        with self._never_left_clean():
            # A layer that writes to its weights or buffers would have moved them by the data, without noise.
            with self.guard.forward_pass(step, self.engine.boundary.written):
                self._additivity(batch)
                if self.not_compared is not None:
                    self.ledger.add_note(self.not_compared)
                summed = self.engine.clipped_sum(self.network, self.loss_fn, batch, plan.clip, self._sum)
            self._require_accounted(summed)
            self.settle()  # of the step before: its tally has arrived while the GPU computes this sum
            event = plan.event(step)
            if self.ranks.size > 1:  # a callback may have changed the noise on one rank
                self.ranks.same("the release of the step", repr(event))
            summed = self.ranks.whole(summed, batch.size)
            self.ledger.record(event)
            self.update(summed, step)
        self._update_bound(summed, step)
        self._unread = step, summed
        if not summed.tally.is_late:
            self.settle()
        return summed.tally

    @cached_property
    def update(self) -> Update:
        """What makes new weights of the sum of a step."""
        trained = self.optimizer, self.plan, self.guard, self._layout, self._sum
        return Update(*trained, self.graph, self.padding, self.ranks)

    def settle(self) -> None:
        """Count what the last step left out, if that is not done yet.

        Raises:
            NonFiniteGradientsError: As above.
        """
        self._count()
        if self.broken_steps >= MAX_BROKEN_STEPS:
            raise NonFiniteGradientsError(
                f"at least half of the gradients were NaN or infinite in {self.broken_steps} steps in a row; they were "
                "left out, and those steps are charged. Lower the learning rate or the norm bound, or check the data"
            )

    def release(self) -> None:
        """Free the memory that is kept from step to step."""
        self.engine.release()
        self.graph.forget()

    def state_dict(self) -> dict[str, Any]:
        """The counters that a resumed training continues."""
        self._count()
        # A resumed training does a step before it stops.
        return {"broken_steps": min(self.broken_steps, MAX_BROKEN_STEPS - 1)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore ``state_dict``."""
        checks.non_negative_int(broken_steps=state["broken_steps"])
        self.broken_steps = state["broken_steps"]

    @property
    def not_compared(self) -> str | None:
        """Why the second line of defence does not compare sums; None if it does."""
        return self._additivity.not_compared

    @contextmanager
    def _never_left_clean(self) -> Iterator[None]:
        """If a step fails, no un-noised sum remains: an optimizer may hold views of it since the last step."""
        try:
            yield
        except BaseException:
            self._sum.zero_()
            raise

    def _update_bound(self, summed: ClippedSum, step: int) -> None:
        plan = self.plan
        if plan.clip_event(step) is None:  # a mechanism with no event of its own never sees the norms
            plan.clip.update(summed.norms[:0], plan.unit, step)
            return
        if self.ranks.first:  # the noise of the count is drawn once
            plan.clip.update(summed.norms, plan.unit, step)
        bound = self.ranks.share(plan.clip.state_dict())
        if not self.ranks.first:
            plan.clip.load_state_dict(bound)

    def _require_accounted(self, summed: ClippedSum) -> None:
        accounted = self.plan.unit.sensitivity_factor * self.plan.clip.norm_bound
        if summed.sensitivity > accounted * (1 + 1e-12) or summed.norm_bound != self.plan.clip.norm_bound:
            raise UnprotectedUpdateError(
                f"engine {self.engine.name!r} states sensitivity {summed.sensitivity:g}, but the ledger accounts for "
                f"{accounted:g}; the step was not taken"
            )

    def _count(self) -> None:
        if self._unread is None:
            return
        step, summed = self._unread
        rejected = summed.rejected  # the host may wait here, and be interrupted
        self._unread = None
        if rejected and not self.left_out:
            self.left_out_at = step + 1
        self.left_out += rejected
        broken = 2 * rejected >= max(1, summed.norms.shape[0]) and rejected > 0
        self.broken_steps = self.broken_steps + 1 if broken else 0
