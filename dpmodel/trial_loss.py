"""The loss of one example, tried before anything is spent."""

from __future__ import annotations

from collections.abc import Callable
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
        raise failed_loss(loss_fn, outputs, targets, error) from error


def failed_loss(loss_fn: LossFunction, outputs: Any, targets: Any, error: Exception) -> DataError:
    """The error of a loss that raised ``error``: what it was given, and a remedy if one is known."""
    return DataError(
        f"loss_fn(outputs, targets) fails for outputs {describe_batch(outputs)} and targets {describe_batch(targets)}: "
        f"{error}{remedy(loss_fn, outputs, targets)}"
    )


def remedy(loss_fn: LossFunction, outputs: Any, targets: Any) -> str:
    """A sentence with the first change of the targets with which a loss that fails succeeds; empty if none does.

    Args:
        loss_fn: Fails on ``outputs`` and ``targets``.
        outputs: Of one example or more.
        targets: Of the same examples.

    Example:
        >>> remedy(nn.BCEWithLogitsLoss(), torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.int64))
        '. This loss takes targets of another kind: give it targets.float()'
    """
    if not isinstance(targets, Tensor) or _computes(loss_fn, outputs, targets):
        return ""
    for words, change in _REMEDIES.items():
        try:
            changed = change(targets)
        except (IndexError, RuntimeError):
            continue
        if _computes(loss_fn, outputs, changed):
            return f". This loss takes targets of another kind: give it {words}"
    return ""


#: Changes of the targets that are tried, in this order.
_REMEDIES: dict[str, Callable[[Tensor], Tensor]] = {
    "targets.float()": lambda targets: targets.float(),
    "targets.long()": lambda targets: targets.long(),
    "targets.squeeze(1)": lambda targets: _squeezed(targets),
    "targets.unsqueeze(1)": lambda targets: targets.unsqueeze(1),
    "targets.squeeze(1).long()": lambda targets: _squeezed(targets).long(),
    "targets.unsqueeze(1).float()": lambda targets: targets.unsqueeze(1).float(),
}


def _squeezed(targets: Tensor) -> Tensor:
    if targets.shape[1] != 1:
        raise IndexError("the targets have no dimension of size 1 to squeeze")
    return targets.squeeze(1)


def _computes(loss_fn: LossFunction, outputs: Any, targets: Tensor) -> bool:
    try:
        return bool(torch.isfinite(ExampleLosses(loss_fn)(outputs, targets).detach()).all())
    except Exception:
        return False
