"""What the optimizer and the learning-rate schedule of a training make of the noise of each step."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from mechanisms.correlated.workload import Workload

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from dpmodel.config.schema import Config


def training_workload(optimizer: Optimizer, callbacks: Iterable[Any], epochs: int, steps_per_epoch: int) -> Workload:
    """The workload of a training.

    For SGD, with momentum or without, it is the noise in the last weights. For other optimizers, whose step is not
    linear in the gradient, it is that of the sums of the gradients; also if the rates are zero or the weights diverge.

    Args:
        optimizer: Left as it was; the first parameter group counts.
        callbacks: A ``LearningRateScheduler`` among them sets the rates; without one, they are constant.
        epochs: Planned epochs.
        steps_per_epoch: Steps of each.
    """
    from torch.optim import SGD

    if not isinstance(optimizer, SGD):
        return Workload.of_prefix_sums(epochs * steps_per_epoch)
    group = optimizer.param_groups[0]
    with np.errstate(all="ignore"):
        found = Workload.of_last_iterate(
            planned_rates(optimizer, callbacks, epochs, steps_per_epoch),
            momentum=float(group["momentum"]),
            dampening=float(group["dampening"]),
            nesterov=bool(group["nesterov"]),
            weight_decay=float(group["weight_decay"]),
        )
    largest = float(np.abs(found.signal).max())
    if not 0 < largest < math.inf:  # rates of zero, or weights that diverge
        return Workload.of_prefix_sums(epochs * steps_per_epoch)
    return Workload(found.signal / largest, found.importance)  # squares of very small rates would be zero


def planned_rates(optimizer: Optimizer, callbacks: Iterable[Any], epochs: int, steps_per_epoch: int) -> list[float]:
    """The learning rate of each step, of the first parameter group."""
    from dpmodel.callbacks.learning_rate import LearningRateScheduler

    scheduled = next((entry for entry in callbacks if isinstance(entry, LearningRateScheduler)), None)
    ahead = None if scheduled is None else scheduled.look_ahead(optimizer, epochs, steps_per_epoch)
    steps = epochs * steps_per_epoch
    if scheduled is None or ahead is None:
        return [float(optimizer.param_groups[0]["lr"])] * steps
    every, rates, ended = 1 if scheduled.interval == "step" else steps_per_epoch, [], False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the stand-in optimizer takes no steps
        for step in range(1, steps + 1):
            rates.append(float(ahead.optimizer.param_groups[0]["lr"]))
            if step % every == 0 and not ended:
                try:
                    ahead.step()
                except Exception:  # too short a schedule; the preflight says so
                    ended = True
    return rates


def configured_workload(config: Config, steps_per_epoch: int) -> Workload:
    """The workload of a configured training."""
    import torch

    from dpmodel.callbacks.learning_rate import LearningRateScheduler
    from dpmodel.optimizers import build_optimizer

    section = config.optimizer
    optimizer = build_optimizer(section.name, [torch.nn.Parameter(torch.zeros(1))], **section.options)
    schedule = section.schedule
    callbacks = (
        [] if schedule is None else [LearningRateScheduler(schedule.name, schedule.interval, **schedule.options)]
    )
    return training_workload(optimizer, callbacks, config.training.epochs, steps_per_epoch)
