"""The loss of one example, tried before anything is spent."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dpmodel.tensor_nest import describe_batch
from mechanisms.engines.batch import Batch, call_network
from mechanisms.engines.losses import ExampleLosses, LossFunction
from mechanisms.engines.parameters import trainable_parameters
from mechanisms.engines.undisturbed import undisturbed
from monitors.errors import DataError, DPModelError, UnsupportedModuleError


def require_trainable(network: nn.Module, loss_fn: LossFunction, example: Batch) -> None:
    """Refuse a loss that cannot be computed, or that no trainable parameter can change.

    A training without gradients would spend its whole budget on noise.

    Args:
        network: In training mode; left as it was.
        loss_fn: The user's loss.
        example: One example.

    Raises:
        DataError: The loss fails on the network's output and the example's target.
        UnsupportedModuleError: It is no tensor, or depends on no trainable parameter.
    """
    parameters = list(trainable_parameters(network).values())
    with undisturbed(network, loss_fn), torch.enable_grad():
        outputs = call_network(network, example.x)
        loss = _tried(loss_fn, outputs, example.y)
        found: tuple[Tensor | None, ...] = ()
        if loss.requires_grad:
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
    if all(gradient is None for gradient in found):
        raise UnsupportedModuleError(
            "the loss depends on no trainable parameter of the network, so that training would add noise alone; look "
            "for detach(), .item(), torch.no_grad() or argmax in the network and the loss, and for a network that does "
            "not use its parameters"
        )


def _tried(loss_fn: LossFunction, outputs: Any, targets: Any) -> Tensor:
    try:
        return ExampleLosses(loss_fn)(outputs, targets).sum()
    except DPModelError:
        raise
    except Exception as error:
        raise DataError(
            f"loss_fn(outputs, targets) fails for outputs {describe_batch(outputs)} and targets "
            f"{describe_batch(targets)}: {error}{_remedy(targets)}"
        ) from error


def _remedy(targets: Any) -> str:
    column = isinstance(targets, Tensor) and targets.dim() == 2 and targets.shape[1] == 1
    return ". Where each target is one class, let it have no dimension of its own: targets.squeeze(1)" if column else ""
