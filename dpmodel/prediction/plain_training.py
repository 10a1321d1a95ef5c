"""Ordinary training without privacy, of teachers and of students."""

from __future__ import annotations

import copy
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from dpmodel.augmentation import Augmentation
from dpmodel.compare.jobs import never
from dpmodel.optimizers import build_optimizer, build_scheduler
from dpmodel.prediction.convex import ConvexHead

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from dpmodel.config.sections import OptimizerSection
    from dpmodel.runs.build import Task


@dataclass(frozen=True)
class PlainTraining:
    """Training with the loss, the optimizer and the epochs of a configuration, without clipping and without noise.

    An epoch passes over the shuffled examples in ``len(x) // batch_size`` batches of nearly equal size, at least one.
    A ``ConvexHead`` is not trained in steps: its optimum is found. With an augmentation, the loss of a step is the mean
    over all views of its examples.

    Args:
        loss_fn: The loss.
        optimizer: Optimizer and learning-rate schedule.
        epochs: Number of epochs.
        batch_size: Smallest number of examples in a batch, if there are as many.
        seed: Seed of order, dropout and augmentation; None: a random one.
        augmentation: Makes random views of the examples; None: none.
    """

    loss_fn: nn.Module
    optimizer: OptimizerSection
    epochs: int
    batch_size: int
    seed: int | None = 0
    augmentation: Augmentation | None = None

    @classmethod
    def of(cls, task: Task) -> PlainTraining:
        """The training that a configuration describes, without its section ``privacy``."""
        training, views = task.config.training, task.config.augmentation
        return cls(
            task.loss_fn,
            task.config.optimizer,
            training.epochs,
            training.batch_size,
            training.seed,
            None if views is None else Augmentation(views.named, views.multiplicity),
        )

    def fit(
        self,
        network: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        stream: int = 0,
        stop_reason: Callable[[], str | None] = never,
    ) -> bool:
        """Train ``network`` in place.

        Args:
            network: Starts from its current weights.
            x: Inputs (N, ...), at least one, on the device of the network.
            y: Targets, N rows that the loss takes.
            stream: Trainings with different numbers draw different random numbers from one seed.
            stop_reason: Is called before each step; a reason ends the training there.

        Returns:
            Whether the training was finished.

        Raises:
            ArithmeticError: The optimum of a ``ConvexHead`` was not reached.
        """
        if isinstance(network, ConvexHead):
            network.fit(x, y)
            return True
        steps = max(1, len(x) // self.batch_size)
        optimizer, schedule = self._optimizer(network, steps)
        loss_fn = copy.deepcopy(self.loss_fn).to(x.device)  # what it may keep of one training stays there
        per_step = self.optimizer.schedule is not None and self.optimizer.schedule.interval == "step"
        network.train()
        try:
            with _drawing(self.seed, stream, x.device):
                for _ in range(self.epochs):
                    for rows in torch.randperm(len(x)).tensor_split(steps):
                        if stop_reason() is not None:
                            return False
                        rows = rows.to(x.device)
                        optimizer.zero_grad()
                        inputs, targets = self._augmented(x[rows], y[rows])
                        _mean_loss(loss_fn, network(inputs), targets).backward()
                        optimizer.step()
                        if schedule is not None and per_step:
                            schedule.step()
                    if schedule is not None and not per_step:
                        schedule.step()
        finally:
            network.eval()
        return True

    def _augmented(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """All views of the examples, and their targets."""
        if self.augmentation is None:
            return x, y
        views = self.augmentation.views(len(x), x.device)
        return views.of(x).flatten(0, 1), y.repeat_interleave(views.multiplicity, dim=0)

    def _optimizer(self, network: nn.Module, steps: int) -> tuple[Optimizer, LRScheduler | None]:
        optimizer = build_optimizer(self.optimizer.name, network.parameters(), **self.optimizer.options)
        schedule = self.optimizer.schedule
        if schedule is None:
            return optimizer, None
        per_epoch = steps if schedule.interval == "step" else 1
        return optimizer, build_scheduler(
            schedule.name, optimizer, self.epochs * per_epoch, per_epoch, **schedule.options
        )


def _mean_loss(loss_fn: nn.Module, outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean over the examples, whichever reduction the loss has: as in private training."""
    loss: Tensor = loss_fn(outputs, targets)
    if loss.dim():
        return loss.mean()
    return loss / len(targets) if getattr(loss_fn, "reduction", None) == "sum" else loss


@contextmanager
def _drawing(seed: int | None, stream: int, device: torch.device) -> Iterator[None]:
    """Draw torch's random numbers from ``seed`` and ``stream`` inside the block, and restore its generators."""
    entropy = secrets.randbits(64) if seed is None else seed
    number = int(np.random.SeedSequence([entropy, stream]).generate_state(1, np.uint64)[0])
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(number % 2**63)
        yield
