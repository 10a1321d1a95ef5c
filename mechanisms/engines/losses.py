"""The loss of each example: any loss function, whatever its reduction over the batch."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from mechanisms.engines.batch import first_tensor, map_tensors
from mechanisms.engines.outputs import each_row, first_dimensions, has_rows_only
from monitors.errors import UnsupportedModuleError

LossFunction = Callable[[Any, Any], Tensor]

#: Reductions of torch's losses, and whether what an example has beyond the batch dimension is averaged.
_AVERAGED = {"mean": True, "elementwise_mean": True, "none": True, "sum": False, "batchmean": False}


class ExampleLosses:
    """Turns a loss function into one loss per example.

    A loss with a ``reduction`` (the losses of ``torch.nn`` and ``torch.nn.functional``) is evaluated with
    ``reduction="none"``; what remains beyond the batch dimension (pixels, tokens, outputs) is averaged, or summed where
    the reduction was ``"sum"`` or ``"batchmean"``. Targets that are ``ignore_index`` do not count in the average, so
    that padding does not scale an example. Class weights keep their size: example i counts ``weight[y_i]`` times, with
    no division by the other examples' weights. Any other callable is called on one example at a time, as a batch of
    one.

    Args:
        loss_fn: ``loss_fn(outputs, targets)``; outputs (B, ...), targets (B, ...).

    Raises:
        ValueError: The loss has a reduction that is not known here.
        UnsupportedModuleError: On call, when the result is not one number per example.

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
        self._ignored: int | None = None
        self.unreduced = self._without_reduction(loss_fn)
        self.loss_fn = loss_fn

    @property
    def vectorised(self) -> bool:
        """Whether the losses of a batch come from one call."""
        return self.unreduced is not None

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        """Losses of shape (B,)."""
        if self.unreduced is None:
            if first_tensor(targets).shape[0] == 1:  # outputs of any type will do
                return self._of_one(outputs, targets).unsqueeze(0)
            return self._of_each(outputs, targets)
        losses = self.unreduced(outputs, targets)
        if losses.dim() == 0:
            raise UnsupportedModuleError(
                "the loss gives one number for the whole batch although reduction='none' was asked for; "
                "return one loss per example, shape (batch,)"
            )
        if losses.dim() == 1:
            return losses
        rest = losses.flatten(1)
        if not self._mean:
            return rest.sum(1)
        return rest.mean(1) if self._ignored is None else rest.sum(1) / _counted(rest, targets, self._ignored)

    def single(self, output: Any, target: Any) -> Tensor:
        """Loss of one example, a scalar; ``output`` and ``target`` have no batch dimension."""
        outputs, targets = (map_tensors(lambda t: t.unsqueeze(0), value) for value in (output, target))
        if self.unreduced is not None:
            return self(outputs, targets).squeeze(0)
        return self._of_one(outputs, targets)

    def _of_each(self, outputs: Any, targets: Any) -> Tensor:
        size = first_tensor(targets).shape[0]
        dims = first_dimensions(outputs, size)
        if not has_rows_only(outputs, size):
            raise UnsupportedModuleError(
                f"the outputs of {size} examples cannot be divided into examples: a tensor does not hold one row per "
                "example, or there is an object of another type than tensors and plain values. Return rows"
            )
        return each_row(self._of_one, outputs, dims, targets, vectorised=True)

    def _of_one(self, outputs: Any, targets: Any) -> Tensor:
        loss = self.loss_fn(outputs, targets)
        if not isinstance(loss, Tensor):
            raise UnsupportedModuleError(
                f"loss_fn must return a tensor, got {loss!r} of type {type(loss).__name__}: leave out .item() and "
                "float()"
            )
        if loss.numel() != 1:
            raise UnsupportedModuleError(
                f"loss_fn must give one number for a batch of one example, got shape {tuple(loss.shape)}; "
                "average or sum it over everything but the batch"
            )
        return loss.reshape(())

    def _without_reduction(self, loss_fn: LossFunction) -> LossFunction | None:
        reduction = getattr(loss_fn, "reduction", None)
        if isinstance(loss_fn, nn.Module) and isinstance(reduction, str):
            unreduced = copy.copy(loss_fn)
            unreduced.reduction = "none"  # type: ignore[assignment]
            self._understand(reduction, getattr(loss_fn, "ignore_index", None))
            return unreduced
        parameters = _parameters(loss_fn)
        if "reduction" in parameters and isinstance(parameters["reduction"].default, str):
            ignored = parameters.get("ignore_index")
            self._understand(parameters["reduction"].default, None if ignored is None else ignored.default)
            unreduced_call: LossFunction = partial(loss_fn, **{"reduction": "none"})
            return unreduced_call
        return None

    def _understand(self, reduction: Any, ignored: Any) -> None:
        if reduction not in _AVERAGED:
            raise ValueError(
                f"the loss has reduction={reduction!r}, which is none of {', '.join(map(repr, _AVERAGED))}: what it "
                "means for one example is not known. Give a function of one example, loss_fn(outputs, targets)"
            )
        self._mean = _AVERAGED[reduction]
        self._ignored = ignored if isinstance(ignored, int) else None


def _parameters(loss_fn: LossFunction) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(loss_fn).parameters
    except (TypeError, ValueError):
        return {}


def _counted(losses: Tensor, targets: Any, ignored: int) -> Tensor | int:
    """Positions of each example that are not ignored, at least 1: what torch divides by for a batch of one."""
    if not isinstance(targets, Tensor) or targets.is_floating_point() or targets[:1].numel() != losses[:1].numel():
        return losses.shape[1]  # probabilities of classes, which are never ignored
    return targets.flatten(1).ne(ignored).sum(1).clamp(min=1)
