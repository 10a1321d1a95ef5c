"""Which updates can be replayed: those whose code does nothing but update tensors on the device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer
from torch.optim import optimizer as torch_optimizers

from dpmodel import optimizers
from mechanisms.engines.cuda_graphs import place_of
from mechanisms.rng import SecureGenerator

#: Code of the optimizers whose steps are known.
_KNOWN = (str(Path(torch_optimizers.__file__).parent), optimizers.__file__)

#: Attributes that the mixed precision of torch sets on a fused optimizer, which reads them on the host in each step.
_OF_SCALING = ("grad_scale", "found_inf")

#: Settings without an effect on a step.
_NAMES = ("params", "param_names")

_NUMBERS = (bool, int, float, str, type(None))


def cannot_record(optimizer: Optimizer, generator: object, device: torch.device) -> str | None:
    """Why a replay of the optimizer's step, or of its noise, could leave something out; None if it cannot.

    Args:
        optimizer: The optimizer.
        generator: The source of the noise; None if it is anything but independent normal noise that is added in place.
        device: Device of the parameters.
    """
    name, step = type(optimizer).__name__, type(optimizer).step
    if type(generator) is not SecureGenerator or "add_normal_" in vars(generator):
        return "the noise mechanism does not just add independent normal noise to the sum"
    kinds = [kind for kind in type(optimizer).__mro__ if issubclass(kind, Optimizer)]
    if not all(kind.__module__.startswith(("torch.optim", optimizers.__name__)) for kind in kinds):
        return f"{name} is not an optimizer of torch"
    if not all(_is_on_device(group, isinstance(optimizer, SGD)) for group in optimizer.param_groups):
        ways = [f"{way}=True" for way in ("fused", "capturable") if way in optimizer.defaults]
        return f"{name} computes on the host" + (f"; build it with {' or '.join(ways)}" if ways else "")
    own = {key: value for key, value in vars(optimizer).items() if callable(value) and hasattr(type(optimizer), key)}
    scheduled = own.pop("step", None)
    if own or not _is_known(step) or (scheduled is not None and not _is_of_scheduler(scheduled, step)):
        return f"{next(iter(own), 'step')} of {name} was replaced"
    if any(getattr(optimizer, each, None) is not None for each in _OF_SCALING):
        return f"{name} has {' or '.join(_OF_SCALING)}"
    hooks = (*optimizer._optimizer_step_pre_hooks.values(), *optimizer._optimizer_step_post_hooks.values())
    hooks += (*torch_optimizers._global_optimizer_pre_hooks.values(),)
    hooks += (*torch_optimizers._global_optimizer_post_hooks.values(),)
    if not all(str(getattr(hook, "__module__", "")).startswith("dpmodel.") for hook in hooks):
        return f"{name} has a step hook"
    return _of_settings(optimizer, device)


def settings_of(optimizer: Optimizer) -> Iterator[object]:
    """The settings of each group by name, with its number of parameters, to be compared by value."""
    for group in optimizer.param_groups:
        yield len(group["params"])
        for name, value in group.items():
            if name not in _NAMES:
                yield name, _plain(value)


def _plain(value: Any) -> object:
    if isinstance(value, Tensor):
        return place_of(value)
    return tuple(map(_plain, value)) if isinstance(value, (tuple, list)) else value


def _of_settings(optimizer: Optimizer, device: torch.device) -> str | None:
    for group in optimizer.param_groups:
        for name, value in group.items():
            parts = value if isinstance(value, (tuple, list)) else (value,)
            tensors = [part for part in parts if isinstance(part, Tensor)]
            if name in _NAMES:
                continue
            if any(type(part) not in _NUMBERS for part in parts if not isinstance(part, Tensor)):
                return f"the setting {name} of {type(optimizer).__name__} is neither a number nor a tensor"
            if any(part.device != device for part in tensors):  # a step would read it on the host
                return f"the setting {name} of {type(optimizer).__name__} is a tensor that is not on {device}"
    return None


def _is_on_device(group: dict[str, Any], is_sgd: bool) -> bool:
    """Whether a step with these settings reads nothing on the host."""
    numbers = not any(isinstance(value, Tensor) for name, value in group.items() if name not in _NAMES)
    return bool(group.get("capturable") or group.get("fused") or (is_sgd and numbers))


def _is_known(function: Any) -> bool:
    """Whether a function, and what it wraps, is code of torch or dpmodel; wraps copy names, but not code."""
    while isinstance(function, FunctionType):
        if not function.__code__.co_filename.startswith(_KNOWN):
            return False
        function = getattr(function, "__wrapped__", None)
    return function is None


def _is_of_scheduler(step: Any, known: object) -> bool:
    """Whether a scheduler has wrapped the step of an optimizer, to see that it is taken."""
    return bool(getattr(step, "_wrapped_by_lr_sched", False)) and getattr(step, "__wrapped__", None) is known
