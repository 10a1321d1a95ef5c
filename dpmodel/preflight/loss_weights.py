"""Class weights that do not act in private training: they cancel for one example, or clipping removes them."""

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

#: Arguments of torch's losses for class weights.
_WEIGHTS = ("weight", "pos_weight")

#: ATen's code of the reduction that divides by the weights of the batch (``at::Reduction::Mean``).
_MEAN = 1

#: Operators that divide by these weights.
_NORMALISING = (torch.ops.aten.nll_loss_forward.default, torch.ops.aten.nll_loss2d_forward.default)

CANCELLED = (
    "the loss divides by the class weights of its batch: for one example, the weight cancels, and private training, "
    "which computes the loss of each example separately, is unweighted. Pass nn.CrossEntropyLoss(weight=...) directly, "
    "or write cross_entropy(outputs, targets, weight=..., reduction='none').mean()"
)

NORMALISED = (
    "the loss of two examples together is not the sum or the mean of their losses (weights divided by their sum, "
    "ignored targets, statistics of the batch): private training computes the loss of each example separately, so this "
    "cancels and all examples count alike. To weight examples, multiply the loss of each by its weight, then average"
)


class _Weights(TorchDispatchMode):
    """Records the class weights that are passed to torch's losses while it is active.

    Attributes:
        found: The weights.
        cancelled: Whether the loss was divided by the weights of its batch.
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
    """Notes for the user about weights that act differently than in plain training.

    Args:
        loss_fn: The user's loss; the caller restores its state.
        examples: Outputs of the network for some examples, as ``x``, and their targets.
        norm_bound: Bound of an example's gradient.

    Example:
        >>> from torch.nn import functional
        >>> weight = torch.tensor([1.0, 5.0])
        >>> examples = Batch(torch.randn(8, 2), torch.tensor([0, 1] * 4))
        >>> loss = lambda outputs, targets: functional.cross_entropy(outputs, targets, weight=weight)
        >>> [note[:51] for note in weight_notes(loss, examples, norm_bound=10.0)]
        ['the loss divides by the class weights of its batch:']
    """
    weights, losses = _Weights(), ExampleLosses(loss_fn)
    with suppress(Exception), torch.no_grad():  # try_loss reports a loss that fails
        with weights:
            losses(*_rows(examples, slice(1)))
        largest = max((float(value.max()) for value in weights.found if _unequal(value)), default=0.0)
        if weights.cancelled:
            yield CANCELLED
        elif largest > norm_bound:
            yield (
                f"the loss has class weights up to {largest:g}, but the gradient of each example, weight included, is "
                f"clipped to norm_bound={norm_bound:g}, so large weights have little effect. Divide the weights by the "
                "largest of them, or raise norm_bound"
            )
        if not (weights.cancelled or losses.vectorised or _additive(loss_fn, examples)):
            yield NORMALISED


def _unequal(weight: Tensor) -> bool:
    return weight.numel() == 1 or bool((weight != weight.flatten()[0]).any())


def _additive(loss_fn: LossFunction, examples: Batch) -> bool:
    """Whether the losses of pairs of examples are one linear function of the sums of their single losses."""

    def value(first: int, last: int) -> float:
        return float(loss_fn(*_rows(examples, slice(first, last))))

    count = first_tensor(examples.y).shape[0]
    single = [value(row, row + 1) for row in range(count)]
    pairs = [value(row, row + 2) for row in range(count - 1)]
    again = [value(row, row + 2) for row in range(count - 1)]
    sums = torch.tensor([one + other for one, other in pairwise(single)], dtype=torch.float64)
    found = torch.tensor(pairs, dtype=torch.float64)
    if count < 4 or pairs != again or not bool(torch.isfinite(sums + found).all()):
        return True  # undecided: too few examples, or a random loss
    design = torch.stack([sums, torch.ones_like(sums)], dim=1)
    fitted = design @ torch.linalg.lstsq(design, found.unsqueeze(1)).solution
    size = max(float(sums.abs().max()), float(found.abs().max()))
    return bool((fitted.squeeze(1) - found).abs().max() <= _ROUNDING * size)


def _rows(examples: Batch, rows: slice) -> tuple[Any, Any]:
    return map_tensors(itemgetter(rows), examples.x), map_tensors(itemgetter(rows), examples.y)
