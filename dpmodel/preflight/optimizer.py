"""The parameters and the step of an optimizer, and the length of a learning-rate schedule."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from types import CellType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn, optim
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset

from dpmodel.optimizers import WAYS_TO_RUN, copied, require_finite, stepped_copy
from dpmodel.preflight.refusal import listed
from mechanisms.engines.parameters import trainable_parameters
from monitors.errors import ConfigError, UnprotectedUpdateError
from monitors.signatures import signature

#: Seconds after which a schedule is not stepped further.
_SECONDS = 5.0

#: What a function of the step may refer to without being copied: data, networks and packages count no steps.
_SHARED = (nn.Module, Tensor, Optimizer, Dataset, DataLoader, np.ndarray, ModuleType, type)
_MOST_COPIED = 100_000

#: Steps with gradients like noise, on this many entries of each dimension.
_TRIED, _SMALL = 4, 4


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
    """Refuse an optimizer whose step would fail, or make the weights NaN or infinite, after the first release.

    An optimizer of ``torch.optim`` takes a step on a copy of the parameters, and a few steps with gradients like noise
    on a small part of each. For an optimizer of a different package, whose state may not be copyable, only the
    signature of ``step()`` is checked.

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
        signature(step).bind(optimizer)
    except TypeError as error:
        raise ConfigError(
            f"optimizer {name!r} cannot train with differential privacy: step() {error}. A closure would compute the "
            "loss again, and each such pass would be a further release. Use an optimizer whose step() needs no closure"
        ) from error
    if not step.__module__.startswith(optim.__name__):
        return
    try:
        stepped_copy(optimizer)
        broken = _first_broken(copied(optimizer, lambda value: value[(slice(_SMALL),) * value.dim()]))
    except Exception as error:
        raise ConfigError(
            f"optimizer {name!r} cannot take a step{_settings(optimizer)}: {str(error).rstrip('.')}. "
            "Build it without these settings, or with settings that the device of the parameters supports"
        ) from error
    if broken is not None:
        group = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
        raise ConfigError(
            f"optimizer {name!r} makes the weights NaN or infinite in step {broken}, with gradients of size 1. Its "
            f"settings are {group}. Lower the learning rate or the weight decay, or use the defaults of the others"
        )


def require_whole_schedule(scheduler: LRScheduler, steps: int, unit: str) -> list[list[float]]:
    """Refuse a learning-rate scheduler that fails before the training ends, or sets a rate that is not finite.

    A copy of the scheduler is stepped to the end, for at most ``_SECONDS``. The functions of ``LambdaLR`` and
    ``MultiplicativeLR`` are copied with what they refer to, because they may count their calls. A scheduler that cannot
    be copied is not tried: a rate that is not finite then ends the training before the step that would use it.

    Args:
        scheduler: Left as it was.
        steps: Number of its steps in the training.
        unit: ``"step"`` or ``"epoch"``, for the message.

    Returns:
        The rates of the parameter groups after 0, 1, 2, ... steps, as far as they were tried.

    Raises:
        ConfigError: It fails, or a setting of the optimizer becomes NaN, infinite or negative; says at which step.

    Example:
        >>> optimizer = optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1)
        >>> require_whole_schedule(optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=8), 16, "step")
        Traceback (most recent call last):
            ...
        monitors.errors.ConfigError: OneCycleLR ends before the training: it fails at step 9 of 16 (...
    """
    trial, name = on_stand_in(scheduler), type(scheduler).__name__
    if trial is None:
        return []
    planned = [rates_of(trial.optimizer)]
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no optimizer steps in between
        for done in range(1, steps + 1):
            try:
                require_finite(trial.optimizer)
            except (TypeError, ValueError) as error:
                raise ConfigError(
                    f"{name} cannot be used: at {unit} {done} of {steps}, {error}. Correct its arguments"
                ) from error
            if time.perf_counter() - started > _SECONDS:
                return planned
            try:
                trial.step()
            except Exception as error:
                raise ConfigError(
                    f"{name} ends before the training: it fails at {unit} {done} of {steps} "
                    f"({type(error).__name__}: {error}). Give it the length of the whole training, {steps} "
                    f"{unit}s"
                ) from error
            planned.append(rates_of(trial.optimizer))
    return planned


def rates_of(optimizer: Optimizer) -> list[float]:
    """The learning rate of each parameter group."""
    return [float(group["lr"]) for group in optimizer.param_groups]


def _first_broken(optimizer: Optimizer) -> int | None:
    """The first of ``_TRIED`` steps that leaves a parameter that is not finite; None if there is none."""
    parameters = [value for group in optimizer.param_groups for value in group["params"] if value.requires_grad]
    finite = [bool(value.isfinite().all()) for value in parameters]
    for number in range(1, _TRIED + 1):
        for value in parameters:
            # Both signs, and different ones in the next step, as noise has.
            value.grad = torch.linspace(-1, 1, value.numel() + 1, dtype=value.dtype, device=value.device)[1:].view(
                value.shape
            ) * (-1) ** (number // 2)
        type(optimizer).step(optimizer)
        if [bool(value.isfinite().all()) for value in parameters] != finite:
            return number
    return None


def _settings(optimizer: Optimizer) -> str:
    """The ways to run that are switched on, in words."""
    switched = {name for group in optimizer.param_groups for name in WAYS_TO_RUN if group.get(name) is True}
    return f" with {', '.join(f'{name}=True' for name in sorted(switched))}" if switched else ""


def on_stand_in(scheduler: LRScheduler) -> LRScheduler | None:
    """A copy of the scheduler on a stand-in optimizer; None if it cannot be copied."""
    optimizer = scheduler.optimizer
    groups = [{**group, "params": [nn.Parameter(torch.zeros(1))]} for group in optimizer.param_groups]
    stand_in = optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.0)
    stand_in.param_groups[:] = copy.deepcopy(groups)
    stand_in.defaults = dict(optimizer.defaults)
    memo: dict[int, Any] = {id(optimizer): stand_in}
    with suppress(Exception):
        for function in _functions_of(scheduler):
            _copied_function(function, memo)
        return copy.deepcopy(scheduler, memo)
    return None


def _functions_of(scheduler: Any) -> Iterator[Any]:
    yield from getattr(scheduler, "lr_lambdas", ())
    for part in getattr(scheduler, "_schedulers", ()):
        yield from _functions_of(part)


def _copied_function(function: Any, memo: dict[int, Any]) -> Any:
    """A copy of a function and of what it refers to, which ``copy.deepcopy`` would share; noted in ``memo``."""
    if not isinstance(function, FunctionType):
        _share_data(function, memo)
        return copy.deepcopy(function, memo)
    if id(function) not in memo:
        scope = dict(function.__globals__)
        names = {name: scope[name] for name in function.__code__.co_names if name in scope}
        cells = tuple(CellType() for _ in function.__closure__ or ())
        twin = FunctionType(function.__code__, scope, function.__name__, function.__defaults__, cells)
        twin.__kwdefaults__ = function.__kwdefaults__
        memo[id(function)] = twin  # first: it may refer to itself
        scope.update({name: _copied_function(value, memo) for name, value in names.items()})
        for cell, original in zip(cells, function.__closure__ or (), strict=True):
            cell.cell_contents = _copied_function(original.cell_contents, memo)
    return memo[id(function)]


def _share_data(value: Any, memo: dict[int, Any]) -> None:
    """Let a copy of ``value`` share data and networks, which are large and count no steps.

    Raises:
        TypeError: It refers to too many objects to be copied.
    """
    seen, left = set[int](), [value]
    while left:
        item = left.pop()
        if id(item) in seen or isinstance(item, (int, float, str)):
            continue
        seen.add(id(item))
        if isinstance(item, _SHARED):
            memo[id(item)] = item
            continue
        if len(seen) > _MOST_COPIED:
            raise TypeError(f"more than {_MOST_COPIED} objects")
        parts = item.values() if isinstance(item, dict) else item if isinstance(item, (list, tuple, set)) else ()
        left += [*parts, *getattr(item, "__dict__", {}).values()]
