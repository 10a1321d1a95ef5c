"""The types of the arguments of ``DPModel`` and ``fit``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from dpmodel.optimizers import require_usable
from mechanisms.clipping import ClipMechanism
from mechanisms.noise import NoiseMechanism
from monitors import checks
from monitors.signatures import signature

#: Arguments of other libraries -> what to write here.
_SOLVE = (
    "compute the noise first: noise_mech=noise_for_epsilon(target_epsilon, delta, loader, epochs), or set "
    "privacy.target_epsilon in a configuration"
)
_NOISE = "pass noise_mech=NoiseMechanismsFactory.create('Gaussian', initial_noise_multiplier=...)"
_BOUND = "pass norm_bound=..., the bound of each example's gradient"
_DELTA = "delta is part of the statement: model.privacy_spent(delta), noise_for_epsilon(target_epsilon, delta, ...)"
_ACCOUNTANT = (
    "the accountant is part of the statement: model.privacy_spent(delta, accountant), "
    "PrivacyMonitorFactory.create(accountant, max_eps=...); it is 'rdp', 'pld' or 'zcdp'"
)
_ELSEWHERE: Mapping[str, str] = {
    "target_epsilon": _SOLVE,
    "epsilon": _SOLVE,
    "noise_multiplier": _NOISE,
    "max_grad_norm": _BOUND,
    "l2_norm_clip": _BOUND,
    "delta": _DELTA,
    "target_delta": _DELTA,
    "accountant": _ACCOUNTANT,
    "epochs": "pass epochs to fit(loader, epochs)",
    "batch_size": "the loader has the batch size: poisson_loader(dataset, batch_size)",
    "poisson_sampling": "pass sampling='poisson' or 'shuffle'",
    "grad_sample_mode": "pass engine=..., or leave it out: the fastest suitable engine is chosen",
}


def refuse_unknown(unknown: Mapping[str, Any], owner: Callable[..., Any]) -> None:
    """Refuse arguments that ``owner`` (``DPModel`` or ``fit``) does not have.

    Raises:
        TypeError: There is one; says what to use instead.
    """
    for name, value in unknown.items():
        parameters = signature(owner).parameters.values()
        known = [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
        instead = _ELSEWHERE.get(name)
        hint = f": {instead}" if instead else checks.nearest_hint(name, known) or f"; it takes {', '.join(known)}"
        raise TypeError(f"{owner.__name__} has no argument {name}={value!r}{hint}")


def check_types(network: Any, loss_fn: Any, optimizer: Any, noise_mech: Any, clip_mech: Any) -> None:
    """Refuse arguments of ``DPModel`` of the wrong type.

    Raises:
        ValueError: One is; names the argument, its value, and the type that is needed.
    """
    expected: dict[str, tuple[Any, Any, str]] = {
        "network": (network, nn.Module, "a torch.nn.Module"),
        "optimizer": (optimizer, Optimizer, "a torch optimizer built from network.parameters()"),
        "noise_mech": (noise_mech, (NoiseMechanism, type(None)), "from NoiseMechanismsFactory.create, or None"),
        "clip_mech": (clip_mech, (ClipMechanism, type(None)), "from ClipMechanismsFactory.create, or None"),
    }
    for name, (value, kind, words) in expected.items():
        if not isinstance(value, kind):
            raise ValueError(f"{name} must be {words}, got {value!r} of type {type(value).__name__}")
    require_usable(optimizer)
    if isinstance(loss_fn, type):
        raise ValueError(f"loss_fn is the class {loss_fn.__name__}; pass an object: {loss_fn.__name__}()")
    if not callable(loss_fn):
        raise ValueError(f"loss_fn must be callable as loss_fn(outputs, targets), got {loss_fn!r}")


def check_keeper(keeper: Any) -> None:
    """Refuse a path in place of a ``StateKeeper``.

    Raises:
        ValueError: ``keeper`` is a path.
    """
    if isinstance(keeper, (str, os.PathLike)):
        raise ValueError(f"keeper is the path {str(keeper)!r}; write keeper=StateKeeper({str(keeper)!r})")


def require_agreement(noise: NoiseMechanism, norm_bound: float) -> None:
    """Refuse a noise mechanism that was built for a different norm bound.

    Raises:
        ValueError: The two differ.
    """
    if noise.norm_bound is not None and noise.norm_bound != norm_bound:
        raise ValueError(
            f"the noise mechanism has norm_bound={noise.norm_bound:g} but DPModel norm_bound={norm_bound:g}; the noise "
            "follows the bound of the clip mechanism. Give both the same, or leave it out of the noise mechanism"
        )


def usable_device(device: str | torch.device) -> torch.device:
    """The device, once a tensor could be created on it.

    Raises:
        ValueError: The device is unknown, or this machine has none.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device={str(device)!r} cannot be used here: {reason}. Leave it out, or pass 'cpu'"
        ) from error
    return found
