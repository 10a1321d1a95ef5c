"""Keeps global modes of torch away from norms, factors, sums and noise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from mechanisms.engines.isolation.guards import AUTOCAST_DEVICES
from mechanisms.engines.isolation.originals import replaced_kernel
from monitors.errors import ConfigError, UnprotectedUpdateError, UnsupportedModuleError


@contextmanager
def plain_modes() -> Iterator[str | None]:
    """Turn autocast and inference mode off inside, and restore them afterwards.

    Autocast would compute norms and sums of gradients with 8 bits; a clipped gradient could then exceed its bound. In
    inference mode there are no gradients.

    Yields:
        A note for the user, or None if no mode was on.

    Example:
        >>> with torch.autocast("cpu"), plain_modes() as note:
        ...     torch.ones(2, 2).mm(torch.ones(2, 2)).dtype
        torch.float32
        >>> note
        "autocast is off during fit; DPModel(precision='bf16') uses it in the forward and backward pass only"
    """
    lowered = [device for device in AUTOCAST_DEVICES if torch.is_autocast_enabled(device)]
    with ExitStack() as stack:
        for device in lowered:
            stack.callback(torch.set_autocast_enabled, device, True)
            torch.set_autocast_enabled(device, False)
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        yield (
            "autocast is off during fit; DPModel(precision='bf16') uses it in the forward and backward pass only"
            if lowered
            else None
        )


def require_no_modes(network: nn.Module) -> None:
    """Refuse modes that may change any result, and parameters that cannot have a gradient.

    Args:
        network: The network to be trained.

    Raises:
        ConfigError: A ``TorchFunctionMode`` or ``TorchDispatchMode`` is active, or a kernel of PyTorch was replaced.
        UnsupportedModuleError: The network was created in inference mode.
    """
    for mode in _watching():
        raise ConfigError(
            f"{type(mode).__name__} is active around fit: it sees, and may change, all operations of torch, including "
            "those of norms, clipping and noise. Call fit outside it; to measure or trace the network, call the network"
        )
    replaced = replaced_kernel()
    if replaced is not None:
        raise ConfigError(
            f"{replaced} has a kernel that was registered with torch.library, which would also compute norms, clipping "
            "and noise. Remove it before fit (library._destroy()), or register it for your own operator"
        )
    made = next((name for name, value in network.named_parameters() if value.is_inference()), None)
    if made is not None:
        raise UnsupportedModuleError(
            f"parameter {made!r} was created in torch.inference_mode() and cannot be trained; build the network "
            "outside it, or copy the parameters"
        )


def require_unwatched() -> None:
    """Refuse to clip while a mode could see the gradients: one that the network has entered and not left.

    Raises:
        UnprotectedUpdateError: A ``TorchFunctionMode`` or ``TorchDispatchMode`` is active.
    """
    for mode in _watching():
        raise UnprotectedUpdateError(
            f"the network or the loss leaves a {type(mode).__name__} active, which may change norms, clipping and "
            "noise; enter it with a with statement"
        )


def _watching() -> list[object]:
    modes = [*_get_current_function_mode_stack(), *_get_current_dispatch_mode_stack()]
    return [mode for mode in modes if not isinstance(mode, DeviceContext) and not _is_ours(mode)]


def _is_ours(mode: object) -> bool:
    return type(mode).__module__.startswith("mechanisms.")
