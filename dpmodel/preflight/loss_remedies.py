"""Why a loss fails, and the conversion that makes it work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dpmodel.saving.nest import describe_batch
from mechanisms.engines.losses import ExampleLosses, LossFunction
from monitors.errors import DataError
from monitors.signatures import signature


def failed_loss(loss_fn: LossFunction, outputs: Any, targets: Any, error: Exception) -> DataError:
    """The error for a loss that raised ``error``: its arguments, and a remedy if one is known."""
    return DataError(
        f"loss_fn(outputs, targets) fails for outputs {describe_batch(outputs)} and targets {describe_batch(targets)}: "
        f"{error}{remedy(loss_fn, outputs, targets)}"
    )


def remedy(loss_fn: LossFunction, outputs: Any, targets: Any) -> str:
    """The first conversion of the targets that makes a failing loss work, as a sentence; empty if none is known.

    Args:
        loss_fn: Fails on ``outputs`` and ``targets``.
        outputs: Of one example or more.
        targets: Of the same examples.

    Example:
        >>> remedy(nn.BCEWithLogitsLoss(), torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.int64))
        '. This loss needs different targets: pass targets.float()'
    """
    if not _takes_two(loss_fn):
        return (
            ". Training calls loss_fn(outputs, targets): wrap a loss with different arguments in a function of these "
            "two, such as lambda outputs, targets: loss(outputs[0], targets, outputs[1])"
        )
    if not isinstance(targets, Tensor) or _computes(loss_fn, outputs, targets):
        return ""
    for words, change in _REMEDIES.items():
        try:
            changed = change(targets)
        except (IndexError, RuntimeError):
            continue
        if _computes(loss_fn, outputs, changed):
            return f". This loss needs different targets: pass {words}"
    return ""


#: Conversions of the targets, in the order in which they are tried.
_REMEDIES: dict[str, Callable[[Tensor], Tensor]] = {
    "targets.float()": lambda targets: targets.float(),
    "targets.long()": lambda targets: targets.long(),
    "targets.squeeze(1)": lambda targets: _squeezed(targets),
    "targets.unsqueeze(1)": lambda targets: targets.unsqueeze(1),
    "targets.squeeze(1).long()": lambda targets: _squeezed(targets).long(),
    "targets.unsqueeze(1).float()": lambda targets: targets.unsqueeze(1).float(),
}


def _takes_two(loss_fn: LossFunction) -> bool:
    try:
        signature(loss_fn.forward if isinstance(loss_fn, nn.Module) else loss_fn).bind(None, None)
    except TypeError:
        return False
    except ValueError:  # a builtin without a signature
        return True
    return True


def _squeezed(targets: Tensor) -> Tensor:
    if targets.shape[1] != 1:
        raise IndexError("the targets have no dimension of size 1 to squeeze")
    return targets.squeeze(1)


def _computes(loss_fn: LossFunction, outputs: Any, targets: Tensor) -> bool:
    try:
        return bool(torch.isfinite(ExampleLosses(loss_fn)(outputs, targets).detach()).all())
    except Exception:
        return False
