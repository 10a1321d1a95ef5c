"""The training loop: epochs of private steps, with callbacks, validation and history."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from dpmodel.callbacks.base import CallbackList
from dpmodel.data.loader import PrivateLoader
from dpmodel.run import Run
from dpmodel.step import PrivateStep
from mechanisms.engines.batch import Batch, first_tensor, map_tensors


def to_device(value: Any, device: torch.device) -> Any:
    """A nest of tensors on ``device``."""
    return map_tensors(lambda tensor: tensor.to(device, non_blocking=True), value)


@dataclass
class TrainingLoop:
    """Runs a ``Run`` to its end or until something stops it.

    Args:
        run: State that callbacks see.
        loader: Where batches come from.
        step: Does one private step.
        listeners: Callbacks and monitors.
        evaluate: Validation metrics after each epoch, or None.
        device: Where the network is.
    """

    run: Run
    loader: PrivateLoader
    step: PrivateStep
    listeners: CallbackList
    evaluate: Callable[[], dict[str, float]] | None
    device: torch.device
    _announced: set[str] = field(default_factory=set, init=False)

    def __call__(self) -> None:
        """Train until the planned steps are done or ``run.stop`` was called."""
        run = self.run
        for epoch in range(1, run.epochs + 1):
            run.epoch = epoch
            self._epoch()
            if run.stop_reason is not None:
                run.say(f"training stopped after {run.step - run.first_step} steps: {run.stop_reason}")
                return

    def _epoch(self) -> None:
        run, started = self.run, time.perf_counter()
        self.listeners.notify("on_train_epoch_begin", run)
        losses = self._steps()
        if not losses:
            return
        self._validate()
        self._record(losses, time.perf_counter() - started)
        self.listeners.notify("on_train_epoch_end", run)

    def _steps(self) -> list[float]:
        run, losses = self.run, []
        self.step.network.train()
        batches = self.loader.batches(run.plan.sampler, run.step - run.first_step, run.steps_per_epoch)
        for _ in range(run.steps_per_epoch):
            self.listeners.notify("on_train_step_begin", run)
            if run.stop_reason is not None:
                break
            run.loss = self.step(self._batch(next(batches)), run.step)
            run.advance()
            losses.append(run.loss)
            self._announce_limit()
            self.listeners.notify("on_train_step_end", run)
        return losses

    def _batch(self, pair: tuple[Any, Any]) -> Batch:
        x, y = to_device(pair[0], self.device), to_device(pair[1], self.device)
        plan = self.run.plan
        if not plan.unit.grouped:
            return Batch(x, y)
        ids = plan.sampler.group_ids(first_tensor(x).shape[0], plan.unit.expected_units)
        return Batch(x, y, torch.from_numpy(ids).to(self.device), plan.unit.expected_units)

    def _announce_limit(self) -> None:
        limit = self.run.plan.clip.at_limit
        if limit is not None and limit not in self._announced:
            self._announced.add(limit)
            self.run.say(limit)

    def _validate(self) -> None:
        if self.evaluate is not None:
            self.listeners.notify("on_eval_begin", self.run)
            self.run.metrics = self.evaluate()
            self.listeners.notify("on_eval_end", self.run)

    def _record(self, losses: list[float], seconds: float) -> None:
        run = self.run
        seen = [loss for loss in losses if not math.isnan(loss)]
        run.history.append(
            epoch=run.epoch,
            step=run.step,
            loss=sum(seen) / len(seen) if seen else None,
            metrics={name if name != "loss" else "valid_loss": value for name, value in run.metrics.items()},
            epsilon=run.privacy_spent().epsilon,
            noise_multiplier=run.noise_multiplier,
            norm_bound=run.norm_bound,
            seconds=seconds,
        )
