"""The training loop: epochs of private steps, with callbacks, validation and history."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from dpmodel.callbacks.base import CallbackList
from dpmodel.data.collation import Collation
from dpmodel.data.loader import PrivateLoader
from dpmodel.data.specimens import Drawn
from dpmodel.distributed.agreement import state_weights
from dpmodel.distributed.shared_releases import SharedReleases, join_notes
from dpmodel.distributed.shared_rows import SharedRows
from dpmodel.optimizers import require_finite
from dpmodel.preflight.refusal import listed, not_finite
from dpmodel.training.interrupt import INTERRUPTED, finishing_despite_workers, read_with_workers
from dpmodel.training.randomness import TorchGenerators
from dpmodel.training.run import Run
from dpmodel.training.step import PrivateStep
from mechanisms.engines.batch import Batch, map_tensors
from mechanisms.engines.device_copy import device_copy
from mechanisms.engines.tally import Tally
from monitors import checks
from monitors.errors import NonFiniteGradientsError

if TYPE_CHECKING:
    from dpmodel.augmentation import Augmentation
    from dpmodel.distributed.follower import Follower
    from dpmodel.saving.record import ReleaseRecord

#: Note of a training that something other than a limit has ended.
STOPPED_BY_CHOICE = (
    "stopped before its planned end: epsilon is that of a length fixed in advance; if the moment was chosen by what "
    "the training showed, state epsilon of all planned steps, or train under a PrivacyFilter"
)


def to_device(value: Any, device: torch.device) -> Any:
    """A nest of tensors on ``device``; the host does not wait for a GPU."""
    return map_tensors(lambda tensor: device_copy(tensor, device), value)


@dataclass
class EpochProgress:
    """The finished part of an epoch.

    Args:
        seconds: Time that earlier processes spent on it.
    """

    seconds: float = 0.0
    started: float = field(default_factory=time.perf_counter)
    _losses: list[float] = field(default_factory=list, init=False)
    _tallies: deque[Tally] = field(default_factory=deque, init=False)  # of later steps

    @property
    def losses(self) -> list[float]:
        """Training loss of each step so far; NaN if no example was drawn. On a GPU, the host waits for the last one."""
        while self._tallies:
            self._tallies[0].read()  # the host may be interrupted while it waits
            self._losses.append(self._tallies.popleft().loss)
        return self._losses

    @property
    def has_steps(self) -> bool:
        """Whether a step was done."""
        return bool(self._losses or self._tallies)

    def add(self, tally: Tally) -> None:
        """Add a step."""
        self._tallies.append(tally)
        while self._tallies and not self._tallies[0].is_late:
            self._losses.append(self._tallies.popleft().loss)

    def seconds_so_far(self) -> float:
        """Time spent on the epoch, in all processes."""
        return self.seconds + time.perf_counter() - self.started

    def state_dict(self) -> dict[str, Any]:
        """Losses and time of the running epoch."""
        losses = torch.tensor(self.losses, dtype=torch.float64, device="cpu")
        return {"losses": losses, "seconds": self.seconds_so_far()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore ``state_dict``."""
        losses, seconds = state["losses"], state["seconds"]
        checks.non_negative(seconds=seconds)
        if losses.dim() != 1 or losses.dtype != torch.float64:
            raise ValueError(f"losses must be float64 of one dimension, got {tuple(losses.shape)} of {losses.dtype}")
        self.losses[:], self.seconds = losses.tolist(), seconds


@dataclass
class TrainingLoop:
    """Runs a ``Run`` to its end or until something stops it.

    Args:
        run: State that callbacks see.
        loader: Source of the batches.
        collation: Checks how they are collated.
        step: Does one private step.
        listeners: Callbacks and monitors.
        evaluate: Returns validation metrics after each epoch; None for no validation.
        device: Device of the network.
        keepers: Keep the training on the disk; each is called before every release and between the steps.
        augmentation: Draws views of the examples; None: the network gets the examples themselves.

    Attributes:
        before_pass: Called before each batch is read and before its forward pass, see ``secret_randomness``; None for
            nothing.
        releases: Keeps the ledgers of several processes equal.
    """

    run: Run
    loader: PrivateLoader
    collation: Collation
    step: PrivateStep
    listeners: CallbackList
    evaluate: Callable[[], dict[str, float]] | None
    device: torch.device
    keepers: Sequence[ReleaseRecord | Follower] = ()
    augmentation: Augmentation | None = None
    before_pass: Callable[..., None] | None = field(default=None, init=False)
    releases: SharedReleases = field(init=False)
    progress: EpochProgress = field(default_factory=EpochProgress, init=False)
    _announced: set[str] = field(default_factory=set, init=False)
    _in_step: bool = field(default=False, init=False)
    _limit_reached: bool = field(default=False, init=False)
    _generators: TorchGenerators = field(init=False)
    _rows: SharedRows = field(init=False)
    _generator_state: Mapping[str, Any] = field(default_factory=dict, init=False)  # of a resumed training

    def __post_init__(self) -> None:
        run = self.run
        self._generators = TorchGenerators(self.device, run.plan.secret)
        self.releases = SharedReleases(run)
        self._rows = SharedRows(run.plan.sampler, run.plan.unit, run.ranks)

    def state_dict(self) -> dict[str, Any]:
        """The states of its parts: all that the next step depends on, besides weights, optimizer and ledger."""
        return {
            "run": self.run.state_dict(),
            "step": self.step.state_dict(),
            "progress": self.progress.state_dict(),
            "callbacks": self.listeners.state_dict(),
            "generators": self._generators.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore ``state_dict`` once the callbacks have begun; the run is restored before, so that they see it."""
        self.listeners.load_state_dict(state["callbacks"])
        self.step.load_state_dict(state["step"])
        self.progress.load_state_dict(state["progress"])
        self._generator_state = state["generators"]

    def __call__(self) -> None:
        """Train until the planned steps are done or ``run.stop`` was called.

        If a callback or the validation fails between two steps, the state is saved anyway.
        """
        run = self.run
        self._keep()
        run.begun = True
        try:
            for epoch in range(run.epoch, run.epochs + 1):
                run.epoch = epoch
                self._epoch()
                if self.releases.agree()[0]:
                    run.say(f"training stopped after {run.step - run.first_step} steps: {run.stop_reason}")
                    self._note_choice()
                    break
        except Exception:
            if not self._in_step:
                with suppress(Exception):  # the first failure is the one to report
                    self._keep(rest=True)
            raise
        self._settle()
        self._keep(rest=True)
        if self.step.left_out:
            run.say(f"{self.step.left_out:,} clipped units without a finite gradient were left out in all")
        told = self.loader.told()
        if told is not None:
            run.say(told)

    def _epoch(self) -> None:
        run = self.run
        if not (self._steps_left() or self.progress.has_steps):
            return
        self.progress.started = time.perf_counter()
        self.listeners.notify("on_train_epoch_begin", run)
        self._steps()
        if not self.progress.has_steps:
            return
        self._settle()
        state_weights(run)
        join_notes(run)
        self._validate()
        self._record(self.progress)
        self.progress = EpochProgress()
        self.listeners.notify("on_train_epoch_end", run)

    def _steps_left(self) -> int:
        run = self.run
        return run.first_step + run.epoch * run.steps_per_epoch - run.step

    def _steps(self) -> None:
        run, left = self.run, self._steps_left()
        self.step.network.train()
        done, secret = run.step - run.first_step, run.plan.secret
        batches = self.loader.batches(self._rows, done, left, secret=secret, wrap=self.collation.wrap)
        # The batches have drawn from the generators too, as they had when the state was saved.
        self._generators.load_state_dict(self._generator_state)
        self._generator_state = {}
        with finishing_despite_workers():
            for _ in range(left):
                asked_before = run.stop_reason is not None
                self.listeners.notify("on_train_step_begin", run)
                stop, asked_before = self.releases.agree(asked_before)
                if stop:
                    self._limit_reached = not asked_before
                if stop or not self._one_step(batches):
                    # Before a partial epoch is validated: a resumed training must not know these metrics.
                    self._keep(rest=True)
                    break

    def _one_step(self, batches: Iterator[Drawn]) -> bool:
        """Take the next step; False if its batch cannot be read because of an interruption."""
        run = self.run
        require_finite(run.optimizer)  # a schedule or a callback may have changed it
        for keeper in self.keepers:
            keeper.before_release(self)
        self._renew()
        drawn = read_with_workers(run, lambda: next(batches), f"the batch of step {run.step}")
        if not self._all_have(drawn):
            return False
        assert drawn is not None
        batch = self._batch(drawn)
        self._renew(search=False)  # the data set may have seeded the generators for its own purposes
        if self.augmentation is not None:
            batch = self.augmentation.drawn(batch)
        self._in_step = True
        run.history.record_norm_bound(run.step, run.norm_bound)
        with self.releases.step():
            tally = self.step(batch, run.step)
        run.advance(tally)
        self.progress.add(tally)
        self._in_step = False
        self._announce_limit()
        self._announce_left_out()
        self._announce_isolation()
        self.listeners.notify("on_train_step_end", run)
        self._keep()
        return True

    def _all_have(self, drawn: Drawn | None) -> bool:
        """Whether every rank has read its batch; an interruption may end the worker processes of one rank only."""
        ranks, read = self.run.ranks, drawn is not None
        if ranks.size > 1 and self.loader.num_workers:
            return all(fact[0] for fact in ranks.meet("the batches of the workers", read))
        return read

    def _settle(self) -> None:
        self.step.settle()
        self.step.guard.settle()
        broken = not_finite(self.step.guard.parameters)
        if broken:
            raise NonFiniteGradientsError(
                f"after {self.run.step} steps, which are charged, the parameter(s) {listed(broken)} are NaN or infinite"
                ". Lower the learning rate, and train from fresh weights"
            )

    def _note_choice(self) -> None:
        """A limit stops by the schedule, known in advance; other stops may depend on what the training showed."""
        run = self.run
        chosen = not self._limit_reached and not str(run.stop_reason).startswith(INTERRUPTED)
        if chosen and run.first_step < run.step < run.planned_steps:
            run.ledger.add_note(STOPPED_BY_CHOICE)

    def _renew(self, *, search: bool = True) -> None:
        if self.before_pass is not None:
            self.before_pass(search=search)

    def _keep(self, *, rest: bool = False) -> None:
        for keeper in self.keepers:
            keeper.between_steps(self, rest=rest)

    def _batch(self, drawn: Drawn) -> Batch:
        with self.step.guard.each_example_alone(self.run.step):
            self.loader.check_read()
            self.collation.watch(drawn)
        x, y, ids = to_device(drawn.x, self.device), to_device(drawn.y, self.device), self._rows.take()
        if ids is None:
            return Batch(x, y)
        return Batch(x, y, device_copy(torch.from_numpy(ids), self.device), self._rows.units)

    def _announce_limit(self) -> None:
        limit = self.run.plan.clip.at_limit
        if limit is not None and limit not in self._announced:
            self._announced.add(limit)
            self.run.say(limit)

    def _announce_left_out(self) -> None:
        if self.step.left_out and "left out" not in self._announced:
            self._announced.add("left out")
            self.run.say(
                f"step {self.step.left_out_at}: {self.step.left_out} clipped units had a gradient that is not finite "
                "and were left out, as they will be in later steps; check the data for NaN and infinite numbers, and "
                "lower the learning rate if the weights diverge"
            )

    def _announce_isolation(self) -> None:
        if self.step.not_compared is not None and "not compared" not in self._announced:
            self._announced.add("not compared")
            self.run.say(self.step.not_compared)
        put_back = self.step.engine.boundary.put_back
        if put_back and "restored" not in self._announced:
            self._announced.add("restored")
            self.run.say(
                f"the network or the loss changes {', '.join(sorted(put_back)[:3])}; dpmodel restores this after "
                "each pass, so that nothing of one example reaches others. Count steps in a callback"
            )

    def _validate(self) -> None:
        evaluate, run = self.evaluate, self.run
        if evaluate is not None:
            self.listeners.notify("on_eval_begin", run)
            run.metrics = run.ranks.once(lambda: read_with_workers(run, evaluate, "the validation data") or {})
            self.listeners.notify("on_eval_end", run)

    def _record(self, progress: EpochProgress) -> None:
        run = self.run
        seen = [loss for loss in progress.losses if not math.isnan(loss)]
        run.history.append(
            epoch=run.epoch,
            step=run.step,
            loss=sum(seen) / len(seen) if seen else None,
            metrics={name if name != "loss" else "valid_loss": value for name, value in run.metrics.items()},
            epsilon=run.epsilon(),
            noise_multiplier=run.noise_multiplier,
            norm_bound=run.norm_bound,
            seconds=progress.seconds_so_far(),
        )
