"""The parameters and the step of an optimizer, and the length of a learning-rate schedule."""

from __future__ import annotations

import copy
import inspect
import time
import warnings
from contextlib import suppress

import torch
from torch import nn, optim
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, MultiplicativeLR

from dpmodel.optimizers import WAYS_TO_RUN, stepped_copy
from dpmodel.preflight.refusal import listed
from mechanisms.engines.parameters import trainable_parameters
from monitors.errors import ConfigError, UnprotectedUpdateError

#: Schedules of functions: a function may count its calls, so only the last step is computed.
_OF_FUNCTIONS = (LambdaLR, MultiplicativeLR)

#: Seconds after which a schedule is not stepped further.
_SECONDS = 2.0


def require_same_parameters(network: nn.Module, optimizer: Optimizer, loss_fn: object = None) -> None:
    """Refuse an optimizer that does not hold exactly the trainable parameters of the network.

    Args:
        network: The network to be trained.
        optimizer: Its optimizer.
        loss_fn: The loss, to name a parameter that belongs to it.

    Raises:
        UnprotectedUpdateError: The optimizer lacks a parameter, or holds a parameter of a different module.

    Example:
        >>> require_same_parameters(nn.Linear(2, 1), optim.SGD(nn.Linear(2, 1).parameters(), lr=0.1))
        Traceback (most recent call last):
            ...
        monitors.errors.UnprotectedUpdateError: the optimizer holds no parameter of this network: it was built from ...
    """
    parameters = trainable_parameters(network)
    held = {id(p): p for group in optimizer.param_groups for p in group["params"]}
    missing = [name for name, p in parameters.items() if id(p) not in held]
    if missing and not any(id(p) in held for p in network.parameters()):
        raise UnprotectedUpdateError(
            "the optimizer holds no parameter of this network: it was built from a different one (before fix()?). "
            "Build it from network.parameters()"
        )
    if missing:
        raise UnprotectedUpdateError(
            f"the optimizer does not hold trainable parameter(s) {listed(missing)} of the network. Build it from "
            "network.parameters(), or freeze these with requires_grad_(False)"
        )
    known = {id(parameter) for parameter in parameters.values()}
    foreign = [p for key, p in held.items() if p.requires_grad and key not in known]
    if foreign:
        of_loss = loss_fn.named_parameters() if isinstance(loss_fn, nn.Module) else ()
        name = next((name for name, parameter in of_loss if parameter is foreign[0]), None)
        raise UnprotectedUpdateError(
            f"the optimizer holds {len(foreign)} trainable parameter(s) that are not the network's, the first of shape "
            f"{tuple(foreign[0].shape)}; they would get no clipped, noised gradient. "
            + (
                "Build the optimizer from network.parameters()"
                if name is None
                else f"The first is {name!r} of the loss: make it a parameter of the network, which returns it with "
                "its outputs (one row per example: value.expand(len(x), ...)), or leave it out of the optimizer"
            )
        )


def require_steps(optimizer: Optimizer) -> None:
    """Refuse an optimizer whose step would fail after the first release.

    An optimizer of ``torch.optim`` takes a step on a copy of the parameters, with zero gradients. For an optimizer of a
    different package, whose state may not be copyable, only the signature of ``step()`` is checked.

    Args:
        optimizer: Left as it was.

    Raises:
        ConfigError: The step fails, or needs a closure; gives the reason.

    Example:
        >>> weight = nn.Parameter(torch.zeros(2))
        >>> require_steps(optim.Adam([weight], lr=0.1, differentiable=True))
        Traceback (most recent call last):
            ...
        monitors.errors.ConfigError: optimizer 'Adam' cannot take a step with differentiable=True: ...
    """
    name, step = type(optimizer).__name__, type(optimizer).step
    try:
        inspect.signature(step).bind(optimizer)
    except TypeError as error:
        raise ConfigError(
            f"optimizer {name!r} cannot train with differential privacy: step() {error}. A closure would compute the "
            "loss again, and each such pass would be a further release. Use an optimizer whose step() needs no closure"
        ) from error
    if not step.__module__.startswith(optim.__name__):
        return
    try:
        stepped_copy(optimizer)
    except Exception as error:
        raise ConfigError(
            f"optimizer {name!r} cannot take a step{_settings(optimizer)}: {str(error).rstrip('.')}. "
            "Build it without these settings, or with settings that the device of the parameters supports"
        ) from error


def require_long_enough(scheduler: LRScheduler, steps: int, unit: str) -> None:
    """Refuse a learning-rate scheduler that fails before the training ends.

    A copy of the scheduler is stepped to the end. The functions of ``LambdaLR`` and ``MultiplicativeLR`` are called for
    the last step only.

    Args:
        scheduler: Left as it was.
        steps: Number of its steps in the training.
        unit: ``"step"`` or ``"epoch"``, for the message.

    Raises:
        ConfigError: It fails; says at which step.

    Example:
        >>> optimizer = optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1)
        >>> require_long_enough(optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=8), 16, "step")
        Traceback (most recent call last):
            ...
        monitors.errors.ConfigError: OneCycleLR ends before the training: it fails at step 9 of 16 (...
    """
    trial = _on_stand_in(scheduler)
    if trial is None:
        return
    started, jumps = time.perf_counter(), isinstance(trial, _OF_FUNCTIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no optimizer steps in between
        for done in [steps] if jumps else range(1, steps + 1):
            if time.perf_counter() - started > _SECONDS:
                return
            try:
                trial.step(*([trial.last_epoch + steps] if jumps else []))
            except Exception as error:
                raise ConfigError(
                    f"{type(scheduler).__name__} ends before the training: it fails at {unit} {done} of {steps} "
                    f"({type(error).__name__}: {error}). Give it the length of the whole training, {steps} "
                    f"{unit}s"
                ) from error


def _settings(optimizer: Optimizer) -> str:
    """The ways to run that are switched on, in words."""
    switched = {name for group in optimizer.param_groups for name in WAYS_TO_RUN if group.get(name) is True}
    return f" with {', '.join(f'{name}=True' for name in sorted(switched))}" if switched else ""


def _on_stand_in(scheduler: LRScheduler) -> LRScheduler | None:
    """A copy of the scheduler on a stand-in optimizer; None if it cannot be copied."""
    optimizer = scheduler.optimizer
    groups = [{**group, "params": [nn.Parameter(torch.zeros(1))]} for group in optimizer.param_groups]
    stand_in = optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.0)
    stand_in.param_groups[:] = copy.deepcopy(groups)
    stand_in.defaults = dict(optimizer.defaults)
    with suppress(Exception):
        return copy.deepcopy(scheduler, {id(optimizer): stand_in})
    return None
