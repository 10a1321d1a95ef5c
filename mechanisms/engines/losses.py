"""The loss of each example, for any loss function and any reduction over the batch."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from torch import Tensor, nn

from mechanisms.engines.batch import first_tensor
from mechanisms.engines.outputs import each_row, first_dimensions, has_rows_only
from monitors.errors import UnsupportedModuleError
from monitors.signatures import signature

LossFunction = Callable[[Any, Any], Tensor]

#: Reductions of torch's losses, and whether they average over the dimensions beyond the batch.
_AVERAGED = {"mean": True, "elementwise_mean": True, "none": True, "sum": False, "batchmean": False}

#: Errors of losses that do not support ``reduction="none"``.
_UNKNOWN_REDUCTION = (ValueError, KeyError, NotImplementedError, AssertionError)


class ExampleLosses:
    """Turns a loss function into one loss per example.

    A loss with a ``reduction`` (the losses of ``torch.nn`` and ``torch.nn.functional``) is evaluated with
    ``reduction="none"``. Dimensions beyond the batch (pixels, tokens, outputs) are then averaged, or summed if the
    reduction was ``"sum"`` or ``"batchmean"``. Targets equal to ``ignore_index`` do not count in the average, so
    padding does not scale an example. Class weights are not normalised: example i counts ``weight[y_i]`` times, without
    division by the weights of other examples. Any other callable is called on one example at a time, as a batch of
    one, and so is a loss whose forward pass ignores its ``reduction``.

    Args:
        loss_fn: ``loss_fn(outputs, targets)``; outputs (B, ...), targets (B, ...).

    Raises:
        ValueError: The loss cannot be called.
        UnsupportedModuleError: On call, if the result is not one number per example.

    Example:
        >>> import torch
        >>> losses = ExampleLosses(nn.CrossEntropyLoss())
        >>> losses(torch.zeros(3, 2), torch.tensor([0, 1, 0])).shape
        torch.Size([3])
    """

    def __init__(self, loss_fn: LossFunction) -> None:
        if not callable(loss_fn):
            raise ValueError(f"loss_fn must be callable as loss_fn(outputs, targets), got {loss_fn!r}")
        self._mean = True
        self._honoured = True
        self._ignored: int | None = None
        self.unreduced = self._without_reduction(loss_fn)
        self.loss_fn = loss_fn

    @property
    def vectorised(self) -> bool:
        """Whether the losses of a batch come from one call, judging by the last call."""
        return self.unreduced is not None and self._honoured

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        """Losses of shape (B,)."""
        size = first_tensor(targets).shape[0]
        losses = self._without_reducing(outputs, targets, size)
        if losses is None:
            if size == 1:  # outputs of any type are accepted
                return self._of_one(outputs, targets).unsqueeze(0)
            return self._of_each(outputs, targets)
        if losses.dim() == 1:
            return losses
        rest = losses.flatten(1)
        if not self._mean:
            return rest.sum(1)
        return rest.mean(1) if self._ignored is None else rest.sum(1) / _counted(rest, targets, self._ignored)

    def _without_reducing(self, outputs: Any, targets: Any, size: int) -> Tensor | None:
        """The loss with ``reduction="none"``, shape (B, ...); None if the loss ignores that.

        This is decided anew in each call: a remembered answer would let one example decide how later ones are treated.
        """
        if self.unreduced is None:
            return None
        losses: Any = None
        with suppress(*_UNKNOWN_REDUCTION):  # an error with a different cause occurs again for one example
            losses = self.unreduced(outputs, targets)
        self._honoured = isinstance(losses, Tensor) and losses.shape[:1] == (size,)
        return losses if self._honoured else None

    def _of_each(self, outputs: Any, targets: Any) -> Tensor:
        size = first_tensor(targets).shape[0]
        dims = first_dimensions(outputs, size)
        if not has_rows_only(outputs, size):
            raise UnsupportedModuleError(
                f"the outputs of {size} examples cannot be divided into examples: a tensor does not hold one row per "
                "example, or an object is neither a tensor nor a plain value. Return one row per example"
            )
        return each_row(self._of_one, outputs, dims, targets, vectorised=True)

    def _of_one(self, outputs: Any, targets: Any) -> Tensor:
        loss = self.loss_fn(outputs, targets)
        if not isinstance(loss, Tensor):
            raise UnsupportedModuleError(f"loss_fn must return a tensor, got {_described(loss)}")
        if loss.numel() != 1:
            raise UnsupportedModuleError(
                f"loss_fn must return one number for a batch of one example, got shape {tuple(loss.shape)}; "
                "average or sum over all dimensions but the batch"
            )
        return loss.reshape(())

    def _without_reduction(self, loss_fn: LossFunction) -> LossFunction | None:
        reduction = getattr(loss_fn, "reduction", None)
        if isinstance(loss_fn, nn.Module) and isinstance(reduction, str):
            unreduced = copy.copy(loss_fn)
            unreduced.reduction = "none"  # type: ignore[assignment]
            return unreduced if self._understands(reduction, getattr(loss_fn, "ignore_index", None)) else None
        parameters = _parameters(loss_fn)
        if "reduction" in parameters and isinstance(parameters["reduction"].default, str):
            ignored = parameters.get("ignore_index")
            known = self._understands(parameters["reduction"].default, None if ignored is None else ignored.default)
            return partial(loss_fn, **{"reduction": "none"}) if known else None
        return None

    def _understands(self, reduction: str, ignored: Any) -> bool:
        """Whether the meaning of the reduction for dimensions beyond the batch is known."""
        self._mean = _AVERAGED.get(reduction, True)
        self._ignored = ignored if isinstance(ignored, int) else None
        return reduction in _AVERAGED


def _described(loss: Any) -> str:
    """Describe what a loss returned instead of a tensor, and the remedy."""
    if loss is None:
        return "None: it has no return statement"
    if isinstance(loss, (tuple, list, Mapping)):
        return f"a {type(loss).__name__}: return only the tensor to differentiate, such as losses[0]"
    return f"{loss!r} of type {type(loss).__name__}: remove .item() and float()"


def _parameters(loss_fn: LossFunction) -> Mapping[str, inspect.Parameter]:
    try:
        return signature(loss_fn).parameters
    except (TypeError, ValueError):
        return {}


def _counted(losses: Tensor, targets: Any, ignored: int) -> Tensor | int:
    """Number of positions of each example that are not ignored, at least 1: torch's divisor for a batch of one."""
    if not isinstance(targets, Tensor) or targets.is_floating_point() or targets[:1].numel() != losses[:1].numel():
        return losses.shape[1]  # class probabilities are never ignored
    return targets.flatten(1).ne(ignored).sum(1).clamp(min=1)
