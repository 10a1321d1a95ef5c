"""What becomes of the weights in a loss: those that one example cancels, and those that clipping takes away."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mechanisms.engines.batch import Batch, first_tensor, map_tensors
from mechanisms.engines.losses import ExampleLosses, LossFunction

#: Largest relative difference that rounding may explain.
_ROUNDING = 1e-4

#: Arguments of torch's losses that hold weights of classes.
_WEIGHTS = ("weight", "pos_weight")

#: ATen's code of the reduction that divides by the weights of the batch (``at::Reduction::Mean``).
_MEAN = 1

#: Operators that divide by these weights.
_NORMALISING = (torch.ops.aten.nll_loss_forward.default, torch.ops.aten.nll_loss2d_forward.default)

CANCELLED = (
    "the loss divides by the class weights of its batch: for one example, the weight cancels, and private training, "
    "which takes the loss of each example by itself, is unweighted. Pass nn.CrossEntropyLoss(weight=...) itself, or "
    "write cross_entropy(outputs, targets, weight=..., reduction='none').mean()"
)

NORMALISED = (
    "the loss of two examples together is not the sum or the mean of their losses (weights that are divided by their "
    "sum, ignored targets, a statistic of the batch): private training takes the loss of each example by itself, where "
    "that cancels and all examples count alike. To weight examples, multiply each one's loss by its weight and take "
    "the mean"
)


class _Weights(TorchDispatchMode):
    """Records the class weights that torch's losses are given while it is active.

    Attributes:
        found: The weights.
        cancelled: Whether the loss was divided by those of its batch.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[Tensor] = []
        self.cancelled = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False))
        given.update(kwargs or {})
        if "target" in given:
            self.found += [given[name] for name in _WEIGHTS if isinstance(given.get(name), Tensor)]
            weighted = isinstance(given.get("weight"), Tensor) and given.get("reduction") == _MEAN
            self.cancelled = self.cancelled or (func in _NORMALISING and weighted)
        return func(*args, **(kwargs or {}))


def weight_notes(loss_fn: LossFunction, examples: Batch, norm_bound: float) -> Iterator[str]:
    """What to tell the user of weights that will not act as they do in plain training.

    Args:
        loss_fn: The user's loss; the caller puts its state back.
        examples: Outputs of the network for some examples, as ``x``, and their targets.
        norm_bound: To which the gradient of an example is clipped.

    Example:
        >>> from torch.nn import functional
        >>> weight = torch.tensor([1.0, 5.0])
        >>> examples = Batch(torch.randn(8, 2), torch.tensor([0, 1] * 4))
        >>> loss = lambda outputs, targets: functional.cross_entropy(outputs, targets, weight=weight)
        >>> [note[:51] for note in weight_notes(loss, examples, norm_bound=10.0)]
        ['the loss divides by the class weights of its batch:']
    """
    weights, losses = _Weights(), ExampleLosses(loss_fn)
    with suppress(Exception), torch.no_grad():  # what fails is said by whoever trains it
        with weights:
            losses(*_rows(examples, slice(1)))
        largest = max((float(value.max()) for value in weights.found if _unequal(value)), default=0.0)
        if weights.cancelled:
            yield CANCELLED
        elif largest > norm_bound:
            yield (
                f"the loss has class weights up to {largest:g}, and the gradient of each example, weight included, is "
                f"clipped to norm_bound={norm_bound:g}: what exceeds the bound is clipped away, so that large weights "
                "hardly act. Divide the weights by the largest of them, or raise norm_bound"
            )
        if not (weights.cancelled or losses.vectorised or _additive(loss_fn, examples)):
            yield NORMALISED


def _unequal(weight: Tensor) -> bool:
    return weight.numel() == 1 or bool((weight != weight.flatten()[0]).any())


def _additive(loss_fn: LossFunction, examples: Batch) -> bool:
    """Whether the losses of pairs of examples go by the sums of their single losses alone, as one linear function."""

    def value(first: int, last: int) -> float:
        return float(loss_fn(*_rows(examples, slice(first, last))))

    count = first_tensor(examples.y).shape[0]
    single = [value(row, row + 1) for row in range(count)]
    pairs = [value(row, row + 2) for row in range(count - 1)]
    again = [value(row, row + 2) for row in range(count - 1)]
    sums = torch.tensor([one + other for one, other in pairwise(single)], dtype=torch.float64)
    found = torch.tensor(pairs, dtype=torch.float64)
    if count < 4 or pairs != again or not bool(torch.isfinite(sums + found).all()):
        return True  # nothing can be said: too few examples, or a loss that draws at random
    design = torch.stack([sums, torch.ones_like(sums)], dim=1)
    fitted = design @ torch.linalg.lstsq(design, found.unsqueeze(1)).solution
    size = max(float(sums.abs().max()), float(found.abs().max()))
    return bool((fitted.squeeze(1) - found).abs().max() <= _ROUNDING * size)


def _rows(examples: Batch, rows: slice) -> tuple[Any, Any]:
    return map_tensors(itemgetter(rows), examples.x), map_tensors(itemgetter(rows), examples.y)
