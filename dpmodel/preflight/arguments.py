"""Whether the arguments of ``DPModel`` are of the right kind."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from dpmodel.optimizers import require_usable
from mechanisms.clipping import ClipMechanism
from mechanisms.noise import NoiseMechanism


def check_types(network: Any, loss_fn: Any, optimizer: Any, noise_mech: Any, clip_mech: Any) -> None:
    """Refuse arguments of ``DPModel`` that are of another kind than they must be.

    Raises:
        ValueError: Names the argument, its value, and what it must be.
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
        raise ValueError(f"loss_fn is the class {loss_fn.__name__}; give an object of it: {loss_fn.__name__}()")
    if not callable(loss_fn):
        raise ValueError(f"loss_fn must be callable as loss_fn(outputs, targets), got {loss_fn!r}")
