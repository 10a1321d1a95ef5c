"""One training: the only thing that callbacks and monitors see."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from dpmodel.callbacks.silence import say_nothing
from dpmodel.claims.choices import private_value_read
from dpmodel.claims.claim import joined_statement
from dpmodel.distributed.ranks import ALONE, Ranks
from dpmodel.runs.report.accesses import run_accesses
from dpmodel.runs.report.subject import ReportSubject
from dpmodel.training.history import History
from mechanisms.engines.tally import Tally
from monitors.accountant import DEFAULT_DELTA, MOST_ROWS, LedgerFollower, Tracker
from monitors.spent import resolve_accountant

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from dpmodel.model import DPModel
    from dpmodel.planning.release import ReleasePlan
    from dpmodel.training.guard import UpdateGuard
    from mechanisms.rng import SecureGenerator
    from monitors.accountant import Accountant
    from monitors.events import PrivacyEvent
    from monitors.journal import ReleaseJournal
    from monitors.ledger import Ledger
    from monitors.spent import PrivacySpent

#: Accountant of the epsilon shown during training if no monitor names one.
DEFAULT_ACCOUNTANT = "rdp"


class Run:
    """State of one call of ``fit``.

    Attributes:
        model: The ``DPModel`` that is trained.
        history: One row per finished epoch.
        first_step: Steps that the model had done before this call.
        step: Steps done over the model's life.
        epoch: Current epoch of this call, from 1.
        epochs: Epochs asked for.
        has_validation: Whether held-out data were given to ``fit``.
        journals: Release journals of the folders that the run is kept in.
        metrics: Latest validation metrics.
        notes: What could not be checked of the mechanisms; on the ledger from the first step on.
        begun: Whether the training began: its state was restored or saved.
        stop_reason: Why the run was stopped early, else None.
        printer: Where ``say`` writes; a progress bar may replace it. Only rank 0 prints.
        ranks: The processes that train together; ``run.ranks.rank`` is the number of this one.

    Args:
        model: The ``DPModel``.
        plan: Mechanisms and events of the run.
        epochs: Epochs asked for.
        steps_per_epoch: Steps per epoch.
        callbacks: Searched for a privacy monitor, whose ``target_delta`` and ``accountant`` are then those of the run.
        ranks: The processes that train together. Default: this process only.
    """

    def __init__(
        self,
        model: DPModel,
        plan: ReleasePlan,
        epochs: int,
        steps_per_epoch: int,
        callbacks: Iterable[Any] = (),
        ranks: Ranks = ALONE,
    ) -> None:
        self.model = model
        self.ranks = ranks
        self.plan = plan
        self.epochs = epochs
        self.steps_per_epoch = steps_per_epoch
        self.first_step = plan.first_step
        self.step = plan.first_step
        self.epoch = 1
        self._tally: Tally | None = None
        self._tally_before: Tally | None = None
        self._guard: UpdateGuard | None = None
        self._follower: LedgerFollower | None = None
        self._when_violated: list[Callable[[], None]] = []
        self.journals: list[ReleaseJournal] = []
        self.has_validation = False
        self.sources: tuple[object, ...] = ()
        self.metrics: dict[str, float] = {}
        self.notes: tuple[str, ...] = ()
        self.begun = False
        self.stop_reason: str | None = None
        self.printer: Callable[[str], None] = print if ranks.first else say_nothing
        deltas = (getattr(callback, "target_delta", None) for callback in callbacks)
        self.delta: float = next((delta for delta in deltas if delta is not None), DEFAULT_DELTA)
        accountants = (getattr(callback, "accountant", None) for callback in callbacks)
        self.accountant: str | Accountant = next(
            (found for found in accountants if found is not None), DEFAULT_ACCOUNTANT
        )
        self.history = History(delta=self.delta)
        self._listeners = tuple(type(callback).__name__ for callback in callbacks)

    @property
    def loss(self) -> float | None:
        """Mean training loss of the last drawn batch, None before the first, NaN for an empty one; not private.

        On a GPU, the host waits for it; see ``recent_loss``. If a callback reads it, and a callback then or later
        changes the optimizer, the noise or the clipping, the ledger gets a note.
        """
        private_value_read("the training loss")
        return None if self._tally is None else self._tally.loss

    @property
    def recent_loss(self) -> float | None:
        """``loss``; on a GPU, the last one known without waiting, which may be that of the step before."""
        private_value_read("the training loss")
        late = self._tally is not None and self._tally.is_late
        tally = self._tally_before if late else self._tally
        return None if tally is None else tally.loss

    @property
    def network(self) -> nn.Module:
        """The network that is trained."""
        return self.model.network

    @property
    def optimizer(self) -> Optimizer:
        """Its optimizer."""
        return self.model.optimizer

    @property
    def ledger(self) -> Ledger:
        """Everything released so far, over the model's life, including processes that were killed."""
        return self.model.ledger

    @property
    def heads(self) -> tuple[str, ...]:
        """Heads of the release journals, which each file of the training names."""
        return tuple(journal.head for journal in self.journals)

    @property
    def verification(self) -> list[str]:
        """What was verified, how and when, for the report; further checks append a sentence."""
        return self.model.verification

    @property
    def planned_steps(self) -> int:
        """Value of ``step`` at the end of this call, unless it stops early."""
        return self.first_step + self.epochs * self.steps_per_epoch

    @property
    def last_step(self) -> int:
        """Number of the last step taken (or of the first one, before it)."""
        return max(self.step - 1, self.first_step)

    @property
    def noise_multiplier(self) -> float:
        """Noise standard deviation divided by the norm bound, at the last step."""
        return self.plan.noise.noise_multiplier(self.last_step)

    @property
    def norm_bound(self) -> float:
        """Norm bound that the next step will use."""
        return self.plan.clip.norm_bound

    @property
    def streams(self) -> dict[str, SecureGenerator]:
        """The streams of randomness that the proof rests on, by purpose."""
        owners = {"noise": self.plan.noise, "clip": self.plan.clip, "sampling": self.plan.sampler}
        found = {name: getattr(owner, "generator", None) for name, owner in owners.items()}
        return {name: generator for name, generator in found.items() if generator is not None}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run continues from, besides the weights and the ledger: counters, history, mechanisms."""
        plan = self.plan
        return {
            "first_step": self.first_step,
            "first_partition": plan.sampler.first_partition,
            "planned_steps": self.planned_steps,
            "step": self.step,
            "epoch": self.epoch,
            "loss": None if self._tally is None else self._tally.loss,
            "metrics": self.metrics,
            "history": self.history.to_dict(),
            "statements": self.model.statements,
            "clip": plan.clip.state_dict(),
            "sampler": plan.sampler.state_dict(),
            "streams": {name: stream.state_dict() for name, stream in self.streams.items() if stream.reproducible},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore ``state_dict`` in a run that was built with its first step and partition."""
        self.step = self.model.steps_done = state["step"]
        self.epoch = state["epoch"]
        self._tally = None if state["loss"] is None else Tally.of(state["loss"])
        self.metrics = dict(state["metrics"])
        self.history = History.from_dict(state["history"])
        self.model.statements = state["statements"]
        self.plan.clip.load_state_dict(state["clip"])
        self.plan.sampler.load_state_dict(state["sampler"])
        for name, stream in state["streams"].items():
            self.streams[name].load_state_dict(stream)
        for name, stream in self.streams.items():
            if stream.reproducible and not state["streams"].get(name):
                raise ValueError(f"the position of the reproducible stream {name!r} is missing")

    def advance(self, tally: Tally) -> None:
        """Count one finished step; ``tally`` is that of its batch."""
        self._tally, self._tally_before = tally, self._tally
        self.step += 1
        self.model.steps_done = self.step

    def event(self, step: int) -> PrivacyEvent:
        """The event that step ``step`` records."""
        return self.plan.event(step)

    @property
    def facts(self) -> Mapping[str, int | float | str | None]:
        """The actual numbers, against which monitors check theirs."""
        return self.plan.facts

    @property
    def statement(self) -> Mapping[str, str]:
        """Unit, relation and sampling in words."""
        return self.plan.statement

    @property
    def subject(self) -> ReportSubject:
        """The training as its privacy report describes it."""
        words = joined_statement(self.model.statements or [self.plan.statement])
        return ReportSubject(
            self.plan,
            self.model.norm_bound,
            self.planned_steps,
            self.delta,
            self.accountant,
            statement=words,
            accesses=run_accesses(self._listeners) if self.has_validation else (),
        )

    def status(self, error: BaseException | None = None) -> str:
        """How the training ended, for the report: ``"finished"``, or why it ended early.

        Args:
            error: The exception it failed with, or None.
        """
        interrupted = isinstance(error, KeyboardInterrupt) and self.stop_reason is not None
        if error is not None and not interrupted:
            return f"failed: {type(error).__name__}: {error}"
        return "finished" if self.stop_reason is None else f"stopped: {self.stop_reason}"

    def privacy_spent(self, delta: float | None = None, accountant: str | Accountant | None = None) -> PrivacySpent:
        """Privacy spent by everything on the ledger; by default as the run's privacy monitor states it."""
        return self.model.privacy_spent(
            self.delta if delta is None else delta, self.accountant if accountant is None else accountant
        )

    def epsilon(self) -> float:
        """Epsilon of everything on the ledger, for the history.

        As ``privacy_spent`` states it for a ledger of up to ``MOST_ROWS`` different rows and after the last step. In
        between, it is the bound of a ``Tracker``: to read a long ledger after each epoch would take longer and longer.
        It depends on the ledger alone, so that a resumed run has the same history.
        """
        if len(self.ledger) <= MOST_ROWS or self.step >= self.planned_steps:
            return self.privacy_spent().epsilon
        if self._follower is None:
            self._follower = LedgerFollower(Tracker(resolve_accountant(self.accountant)), self.ledger)
        return self._follower.read().epsilon(self.delta)

    def guarded_by(self, guard: UpdateGuard) -> None:
        """The guard that watches the weights of this run."""
        self._guard = guard

    def read_late(self) -> None:
        """Read what a GPU still has to say about the weights; call it before they are saved.

        Raises:
            UnprotectedUpdateError: They were changed by something other than dpmodel, and the ledger has a violation.
        """
        if self._guard is not None:
            self._guard.read_late()

    @contextmanager
    def post_processing(self, what: str) -> Iterator[None]:
        """Let a callback change weights, buffers or optimizer state inside the block.

        For changes that do not depend on private data, such as an average of earlier weights or a temperature that
        depends on the step. The ledger gets a note with ``what``. Outside such a block, a change ends the training and
        voids its claim, unless the values equal those of an earlier step (weights swapped back or restored).

        Args:
            what: What is changed, in words.

        Raises:
            UnprotectedUpdateError: Something was changed before the block.

        Example:
            >>> from dpmodel import Callback
            >>> class Averaged(Callback):
            ...     def on_train_end(self, run):
            ...         with run.post_processing("the mean of the weights of the last epochs"):
            ...             run.network.load_state_dict(self.mean)
        """
        if not isinstance(what, str) or not what.strip():
            raise ValueError(f"what must say in words what is written, got {what!r}")
        with nullcontext() if self._guard is None else self._guard.declared():
            self.ledger.add_note(f"a callback changed the network, declared as post-processing: {what}")
            yield

    def on_violation(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` as soon as a violation is recorded on the ledger."""
        self._when_violated.append(listener)

    def violated(self, reason: str) -> None:
        """A violation was recorded on the ledger."""
        del reason
        for listener in self._when_violated:
            listener()

    def stop(self, reason: str) -> None:
        """End the training before the next step; the first reason is kept."""
        if self.stop_reason is None:
            self.stop_reason = reason

    def say(self, text: str) -> None:
        """Print a line without disturbing a progress bar."""
        self.printer(text)
