"""How scores and targets pair: inferred from their shapes and from the loss of synthetic scores and targets."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dpmodel.metrics.score_leaf import ScoreLeaf
from monitors.errors import DataError

#: Number of synthetic examples on which a pairing is tested, and the most scores that they may have in total.
_TRIED_ROWS = 64
_TRIED_NUMBERS = 2**24

#: Fewest synthetic targets that must confirm a pairing, and the smallest share of them.
_LEAST_SHOWN = 16
_SHOWN_BY = 0.95

#: Positions by which a loss may shift the targets against the outputs (language models predict the next token).
_SHIFTS = (0, 1, -1, 2, -2)

#: Remedy if metrics by name do not apply.
OTHER_METRICS = "use a torchmetrics object or a function of outputs and targets"


def without_ones(value: Tensor) -> tuple[int, ...]:
    """The shape of one example, without dimensions of size 1."""
    return tuple(size for size in value.shape[1:] if size != 1)


def is_binary(scores: Tensor, targets: Tensor) -> bool:
    """Whether there is one score per target."""
    one_each = without_ones(scores) == without_ones(targets) and scores.numel() == targets.numel()
    return one_each and (scores.dim() == 1 or 1 in scores.shape[1:])


def class_numbers(scores: Tensor, targets: Tensor) -> Tensor:
    """Targets without a class dimension of size 1: (B, 1, ...) and (B, ..., 1) become (B, ...)."""
    if targets.dim() != scores.dim():
        return targets
    column = next((dim for dim in (1, targets.dim() - 1) if targets.shape[dim] == 1), None)
    return targets if column is None else targets.squeeze(column)


def _candidates(scores: Tensor, targets: Tensor) -> list[int]:
    shapes = {axis: scores.shape[:axis] + scores.shape[axis + 1 :] for axis in range(1, scores.dim())}
    return [axis for axis, shape in shapes.items() if shape == targets.shape]


def pairing(leaf: ScoreLeaf, outputs: Any, scores: Tensor, targets: Tensor) -> tuple[int, int, bool]:
    """The class dimension, the shift of the targets, and whether the loss depends on the scores.

    Args:
        leaf: Finds the scores in ``outputs``, and evaluates the loss.
        outputs: Outputs of a few examples.
        scores: Their scores, (B, ...).
        targets: Their class indices, (B, ...).

    Raises:
        DataError: The shapes do not match, or the loss does not show how scores and targets pair.
    """
    axes = _candidates(scores, targets)
    if not axes:
        raise DataError(
            "metrics by name take scores (N, classes, ...) or (N, ..., classes) with class indices (N, ...) as "
            f"targets, got outputs of shape {tuple(scores.shape)} and targets of shape {tuple(targets.shape)}; "
            f"{OTHER_METRICS}"
        )
    if not leaf.knows_loss:
        return axes[0], 0, False
    shown, reads = _shown_pairing(leaf, outputs, scores, targets, axes)
    if shown is not None:
        return (*shown, True)
    if targets.dim() == 1 and not reads:
        return axes[0], 0, False
    raise DataError(
        f"cannot determine how the loss pairs outputs of shape {tuple(scores.shape)} with targets of shape "
        f"{tuple(targets.shape)}: "
        + (
            "it does not raise the score of each target's class"
            if reads
            else "loss_fn does not depend on these outputs (does the network compute the loss?)"
        )
        + f"; {OTHER_METRICS}"
    )


def _shown_pairing(
    leaf: ScoreLeaf, outputs: Any, scores: Tensor, targets: Tensor, axes: list[int]
) -> tuple[tuple[int, int] | None, bool]:
    """The dimension and shift for which the loss raises the targets' scores; whether it depends on the scores."""
    reads = False
    for axis in axes:
        for tried in (_drawn_targets(scores, targets, axis), targets):  # a loss may refuse synthetic targets
            equal = scores.new_full((len(tried), *scores.shape[1:]), 1.0 / scores.shape[axis])
            gradient = leaf.gradient(outputs, equal, tried)
            if gradient is None:
                continue
            gradient = torch.nan_to_num(gradient)
            if not bool((gradient != 0).any()):
                break
            reads = True
            shifts = [shift for shift in _SHIFTS if targets.dim() > 1 and abs(shift) < targets.shape[1]] or [0]
            found = next((shift for shift in shifts if _pulls(gradient.movedim(axis, -1), tried, shift)), None)
            if found is not None:
                return (axis, found), True
            break
    return None, reads


def _drawn_targets(scores: Tensor, targets: Tensor, axis: int) -> Tensor:
    rows = max(2, min(_TRIED_ROWS, _TRIED_NUMBERS // max(1, scores[0].numel())))
    generator = torch.Generator("cpu").manual_seed(0)
    return torch.randint(scores.shape[axis], (rows, *targets.shape[1:]), generator=generator, device="cpu").to(targets)


def _pulls(gradient: Tensor, targets: Tensor, shift: int) -> bool:
    """Whether descending ``gradient`` (B, ..., classes) raises the score of each target's class above all others."""
    pulled, wanted = moved(gradient, targets, shift)
    agree = (pulled.argmin(-1) == wanted)[(pulled != 0).any(-1)]
    return len(agree) >= _LEAST_SHOWN and float(agree.double().mean()) >= _SHOWN_BY


def moved(scores: Tensor, targets: Tensor, shift: int) -> tuple[Tensor, Tensor]:
    """Scores and targets aligned so that output p meets target p + shift along dimension 1."""
    if not shift:
        return scores, targets
    length = targets.shape[1] - abs(shift)
    return scores.narrow(1, max(0, -shift), length), targets.narrow(1, max(0, shift), length)


def soft_axis(leaf: ScoreLeaf, outputs: Any, scores: Tensor, targets: Tensor) -> int:
    """The class dimension of targets that hold one row of probabilities each.

    Raises:
        DataError: They do not, or several classes may be true at once.
    """
    values = targets.double()
    sums = {axis: values.sum(axis) for axis in range(1, targets.dim())}
    axes = [axis for axis, found in sums.items() if torch.allclose(found, torch.ones_like(found), atol=1e-3)]
    if len(axes) == 1 and bool((values >= 0).all()):
        before, after = (leaf.losses(outputs, scores + more, targets) for more in (0.0, 1.0))
        # A loss over mutually exclusive classes depends only on differences of scores.
        if before is not None and after is not None and torch.allclose(before, after, rtol=1e-3, atol=1e-4):
            return axes[0]
    raise DataError(
        f"outputs and targets both have shape {tuple(scores.shape)}, but metrics by name take class indices as "
        "targets. For several labels per example or one-hot targets, use a torchmetrics object, such as "
        f"torchmetrics.classification.MultilabelAccuracy(num_labels={scores.shape[1]})."
    )


def scale(leaf: ScoreLeaf, outputs: Any, scores: Tensor, targets: Tensor) -> tuple[bool, bool]:
    """Whether binary scores are probabilities, and whether the loss depends on them.

    Args:
        leaf: See ``pairing``.
        outputs: See ``pairing``.
        scores: One per target.
        targets: 0 and 1, or -1 and 1.

    Raises:
        DataError: The loss does not show it.
    """
    if not leaf.knows_loss:
        return False, False
    low = -1.0 if bool((targets == -1).any()) and not bool((targets == 0).any()) else 0.0

    def losses(target: float, *values: float) -> list[float]:
        # One at a time: a loss may refuse some values, and values out of range may crash a device.
        found = (
            leaf.losses(outputs, torch.full_like(scores[:1], value), torch.full_like(targets[:1], target))
            for value in values
        )
        return [math.nan if loss is None else float(loss.detach()) for loss in found]

    points = (1e-3, 1e-2, 0.5, 0.6)
    at_high, at_low = losses(1.0, *points), losses(low, *points)
    near, far, half, above = at_high
    least = 1e-6 * max((abs(value) for value in (*at_high, *at_low) if math.isfinite(value)), default=0.0)
    if not any(abs(value - near) > least for value in at_high):
        if bool(((scores < 0) | (scores > 1)).any()):
            return False, False
        raise DataError(
            "cannot determine whether the outputs are probabilities or log odds: all of them are in [0, 1], and "
            f"loss_fn does not depend on them (does the network compute the loss?); {OTHER_METRICS}"
        )
    if not any(abs(one - other) > least for one, other in zip(at_high, at_low, strict=True)):
        raise DataError(
            f"loss_fn does not compare these outputs of shape {tuple(scores.shape)} with the targets, so they may not "
            f"be scores; {OTHER_METRICS}"
        )
    if near - far > 3.0 * max(half - above, 0.0) + least:
        return True, True  # the loss grows without bound as the probability of the target approaches 0
    at_zero, *below = losses(low, 0.0, -0.5, -2.0, -8.0)
    # If no score below 0 lowers the loss of the first class, the scores estimate the target itself.
    return not any(value < at_zero - least for value in below), True
