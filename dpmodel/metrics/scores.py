"""Which numbers of the outputs are the scores of which target: read from outputs, targets and the loss."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from dpmodel.metrics.evaluation_losses import EvaluationLosses
from monitors.errors import DataError

#: torch's own value for targets that a loss ignores.
IGNORED = -100

#: Made-up targets on which the pairing of scores and targets is tried, and the share of them that must show it.
_TRIED_TARGETS = 64
_SHOWN_BY = 0.95

#: Positions by which a loss may move the targets against the outputs (language models predict the next one).
_SHIFTS = (0, 1, -1, 2, -2)

_OBJECT = "give a torchmetrics object or a function of outputs and targets"


class ScoreLeaf:
    """The tensor among a network's outputs that metrics by name are computed of.

    Args:
        name: The metric, for messages.
        outputs: Of the first batch.
        targets: Of the first batch.
        losses: Of the user's loss; None if it is not known.

    Raises:
        DataError: There is no such tensor, or more than one.
    """

    def __init__(self, name: str, outputs: Any, targets: Tensor, losses: EvaluationLosses | None) -> None:
        self._losses = losses
        leaves = tree_leaves(outputs)
        found = [place for place, leaf in enumerate(leaves) if _is_score(leaf, len(targets))]
        if len(found) > 1 and losses is not None:
            found = _read_by(losses, outputs, targets, found) or found
        if len(found) != 1:
            raise DataError(
                f"the metric {name!r} takes the outputs as one tensor, but the network gives a "
                f"{type(outputs).__name__} with {len(found)} tensors of one row per example; give a function of "
                "outputs and targets, or an object with update, compute and reset, that picks from it"
            )
        self._place = found[0]

    def of(self, outputs: Any) -> Tensor:
        """The tensor in ``outputs``, detached."""
        leaf: Tensor = tree_leaves(outputs)[self._place]
        return leaf.detach()

    def losses(self, outputs: Any, scores: Tensor, targets: Tensor) -> Tensor | None:
        """Losses (B,) with ``scores`` in place of the tensor; None if they cannot be computed.

        Args:
            outputs: Of at least one example; the first one's are what the loss sees beside the scores.
            scores: Shape (B, ...).
            targets: Shape (B, ...).
        """
        if self._losses is None:
            return None
        leaves, form = tree_flatten(outputs)
        rows = len(leaves[self._place])
        beside = [leaf if rows == len(scores) else _first_rows(leaf, rows, len(scores)) for leaf in leaves]
        beside[self._place] = scores
        for labels in (targets, targets.to(scores.dtype)):  # some losses take floats only
            with suppress(Exception):
                return self._losses.unchecked(tree_unflatten(beside, form), labels)
        return None

    def gradient(self, outputs: Any, scores: Tensor, targets: Tensor) -> Tensor | None:
        """Gradient of the summed losses for ``scores``; None if there is none. NaN where an example has no loss."""
        with torch.enable_grad():
            scores = scores.detach().requires_grad_()
            losses = self.losses(outputs, scores, targets)
            if losses is None or not losses.requires_grad:
                return None
            (found,) = torch.autograd.grad(losses.sum(), scores, allow_unused=True)
        if found is None:
            return None
        found[losses.isnan()] = torch.nan
        return found


@dataclass(frozen=True)
class ClassScores:
    """How the scores of classes lie in the outputs, and how they pair with the targets.

    Args:
        leaf: Finds the tensor of scores, (B, ...).
        axis: Its dimension that counts classes; None for one score per target, of the second of two classes.
        shift: Output p is compared with target p + shift, along the first dimension after the examples.
        num_classes: 2 or more.
        are_probabilities: Whether the scores are probabilities already.
        soft: Whether the targets are one row of class probabilities each.
        reads: Whether the loss depends on the scores, so that it shows which targets it ignores.
    """

    leaf: ScoreLeaf
    axis: int | None
    shift: int
    num_classes: int
    are_probabilities: bool
    soft: bool
    reads: bool

    @classmethod
    def read(cls, name: str, outputs: Any, targets: Any, losses: EvaluationLosses | None) -> ClassScores:
        """From the first batch.

        Raises:
            DataError: The outputs are no scores of classes, the targets no class numbers, or how they pair cannot be
                told.
        """
        targets = _one_tensor(name, targets)
        leaf = ScoreLeaf(name, outputs, targets, losses)
        scores = leaf.of(outputs)
        if _is_binary(scores, targets):
            probabilities, reads = _scale(leaf, outputs, scores, targets)
            return cls(leaf, None, 0, 2, probabilities, False, reads)
        soft = scores.shape == targets.shape
        if soft:
            axis = _soft_axis(leaf, outputs, scores, targets)
            shift, reads = 0, True
        else:
            axis, shift, reads = _pairing(leaf, outputs, scores, _class_numbers(scores, targets))
        sums = scores.double().sum(axis)
        probabilities = bool((scores >= 0).all() and torch.allclose(sums, torch.ones_like(sums), atol=1e-3))
        return cls(leaf, axis, shift, scores.shape[axis], probabilities, soft, reads)

    def pairs(self, outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities, float64, of shape (M,) for two classes and (M, classes) for more, and class numbers (M,).

        M is the number of targets that the loss does not ignore.

        Raises:
            DataError: A target is out of range.
        """
        scores = self.leaf.of(outputs)
        counted = self._counted(outputs, scores, targets)
        if self.axis is None:
            values, labels = scores.flatten(), targets.flatten()
            shown = torch.ones_like(values, dtype=torch.bool) if counted is None else counted.flatten()
        else:
            values = scores.movedim(self.axis, -1)
            labels = targets.argmax(self.axis) if self.soft else _class_numbers(scores, targets)
            shown = torch.ones(values.shape[:-1], dtype=torch.bool, device=values.device)
            shown = shown if counted is None else counted
            values, labels, shown = (*_moved(values, labels, self.shift), _moved(shown, labels, self.shift)[0])
            values, labels, shown = values.flatten(0, -2), labels.flatten(), shown.flatten()
        if not self.reads:
            shown = shown & (labels != IGNORED)
        values, labels = values[shown], self._labels(scores, labels[shown])
        return self._probabilities(values.double()), labels

    def _counted(self, outputs: Any, scores: Tensor, targets: Tensor) -> Tensor | None:
        """Which scores the loss compares with a target, without the dimension of classes; None if that is not known."""
        if not self.reads or self.soft:
            return None
        # At equal scores no gradient of a target that counts is zero, as it may be where the network is certain.
        gradient = self.leaf.gradient(outputs, torch.full_like(scores, 1.0 / self.num_classes), targets)
        if gradient is None:
            return None
        zero = (gradient == 0) | gradient.isnan()
        return ~zero if self.axis is None else ~zero.all(self.axis)

    def _labels(self, scores: Tensor, labels: Tensor) -> Tensor:
        if labels.is_floating_point() and bool((labels != labels.round()).any()):
            raise DataError(
                f"metrics by name take class numbers as targets, got {_first_fraction(labels):.4g}; {_OBJECT}, or the "
                "metrics mae and mse"
            )
        labels = labels.long()
        if not len(labels):
            return labels
        low, high = int(labels.min()), int(labels.max())
        if self.axis is None and low == -1 and not bool((labels == 0).any()):
            labels, low = (labels + 1) // 2, 0
            high = int(labels.max())
        if low < 0 or high >= self.num_classes:
            raise DataError(
                f"targets must lie in [0, {self.num_classes}) for outputs of shape {tuple(scores.shape)}, got {low} to "
                f"{high}"
            )
        return labels

    def _probabilities(self, values: Tensor) -> Tensor:
        # torchmetrics guesses from each batch's range whether it holds scores or probabilities, and guesses wrong for a
        # batch of small scores; so it is given probabilities only. Double precision keeps large scores apart.
        if self.axis is None:
            return values.clamp(0.0, 1.0) if self.are_probabilities else values.sigmoid()
        values = values if self.are_probabilities else values.softmax(-1)
        return values[:, 1] if self.num_classes == 2 else values


@dataclass(frozen=True)
class NumberScores:
    """How outputs and targets of a task of numbers pair: element by element.

    Args:
        leaf: Finds the tensor of predictions.
    """

    leaf: ScoreLeaf

    @classmethod
    def read(cls, name: str, outputs: Any, targets: Any, losses: EvaluationLosses | None) -> NumberScores:
        """From the first batch.

        Raises:
            DataError: The outputs are not one tensor, or of another shape than the targets.
        """
        targets = _one_tensor(name, targets)
        leaf = ScoreLeaf(name, outputs, targets, losses)
        scores = leaf.of(outputs)
        if _without_ones(scores) != _without_ones(targets):
            raise DataError(
                f"the metric {name!r} compares element by element, but the outputs have shape {tuple(scores.shape)} "
                f"and the targets {tuple(targets.shape)}; {_OBJECT}"
            )
        return cls(leaf)

    def pairs(self, outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions and targets, both (M,): those that the loss does not ignore."""
        scores = self.leaf.of(outputs)
        wanted = torch.nan_to_num(targets.reshape(scores.shape).to(scores.dtype))
        counted, shown = torch.ones_like(scores, dtype=torch.bool), None
        for away in (1.0, -2.0):  # at the target itself the gradient of every loss is zero
            gradient = self.leaf.gradient(outputs, wanted + away, targets)
            if gradient is not None:
                used = (gradient != 0) & ~gradient.isnan()
                shown = used if shown is None else shown | used
        if shown is not None and bool(shown.any()):
            counted = shown
        return scores[counted], targets.reshape(scores.shape)[counted].to(scores.dtype)


def _is_score(leaf: Any, rows: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.shape[:1] == (rows,)


def _one_tensor(name: str, targets: Any) -> Tensor:
    if not isinstance(targets, Tensor):
        raise DataError(
            f"the metric {name!r} takes the targets as one tensor, but the data give a {type(targets).__name__}; "
            f"{_OBJECT} that picks from it"
        )
    return targets


def _read_by(losses: EvaluationLosses, outputs: Any, targets: Tensor, places: list[int]) -> list[int]:
    """Those of ``places`` whose tensors the loss depends on."""
    leaves, form = tree_flatten(outputs)
    with torch.enable_grad():
        for place in places:
            leaves[place] = leaves[place].detach().requires_grad_()
        try:
            summed = losses.unchecked(tree_unflatten(leaves, form), targets).sum()
            found = torch.autograd.grad(summed, [leaves[place] for place in places], allow_unused=True)
        except Exception:
            return []
    return [place for place, gradient in zip(places, found, strict=True) if gradient is not None]


def _first_rows(leaf: Any, rows: int, wanted: int) -> Any:
    """``leaf`` with its first row ``wanted`` times, if it holds one row for each of ``rows`` examples."""
    if not isinstance(leaf, Tensor) or leaf.shape[:1] != (rows,):
        return leaf
    return leaf[:1].expand(wanted, *leaf.shape[1:])


def _without_ones(value: Tensor) -> tuple[int, ...]:
    return tuple(size for size in value.shape[1:] if size != 1)


def _is_binary(scores: Tensor, targets: Tensor) -> bool:
    """Whether there is one score per target."""
    one_each = _without_ones(scores) == _without_ones(targets) and scores.numel() == targets.numel()
    return one_each and (scores.dim() == 1 or 1 in scores.shape[1:])


def _class_numbers(scores: Tensor, targets: Tensor) -> Tensor:
    """Targets without a dimension of their own for the class: (B, 1, ...) and (B, ..., 1) as (B, ...)."""
    if targets.dim() != scores.dim():
        return targets
    column = next((dim for dim in (1, targets.dim() - 1) if targets.shape[dim] == 1), None)
    return targets if column is None else targets.squeeze(column)


def _candidates(scores: Tensor, targets: Tensor) -> list[int]:
    shapes = {axis: scores.shape[:axis] + scores.shape[axis + 1 :] for axis in range(1, scores.dim())}
    return [axis for axis, shape in shapes.items() if shape == targets.shape]


def _pairing(leaf: ScoreLeaf, outputs: Any, scores: Tensor, targets: Tensor) -> tuple[int, int, bool]:
    """The dimension of classes, the shift of the targets, and whether the loss depends on the scores."""
    axes = _candidates(scores, targets)
    if not axes:
        raise DataError(
            "metrics by name take scores (N, classes, ...) or (N, ..., classes) with class numbers (N, ...) as targets, "
            f"got outputs of shape {tuple(scores.shape)} and targets of shape {tuple(targets.shape)}; {_OBJECT}"
        )
    if leaf._losses is None:
        return axes[0], 0, False
    shown, reads = _shown_pairing(leaf, outputs, scores, targets, axes)
    if shown is not None:
        return (*shown, True)
    if targets.dim() == 1 or (len(axes) == 1 and reads):
        return axes[0], 0, reads
    raise DataError(
        f"how the loss pairs outputs of shape {tuple(scores.shape)} with targets of shape {tuple(targets.shape)} "
        "cannot be told"
        + ("" if reads else ", because loss_fn does not depend on these outputs (the network computes the loss?)")
        + f"; {_OBJECT}"
    )


def _shown_pairing(
    leaf: ScoreLeaf, outputs: Any, scores: Tensor, targets: Tensor, axes: list[int]
) -> tuple[tuple[int, int] | None, bool]:
    """The dimension and the shift for which the loss pulls the score of each target's class up, on made-up targets."""
    reads, generator = False, torch.Generator("cpu").manual_seed(0)
    rows = max(2, math.ceil(_TRIED_TARGETS / max(1, math.prod(targets.shape[1:]))))
    for axis in axes:
        classes = scores.shape[axis]
        made_up = torch.randint(classes, (rows, *targets.shape[1:]), generator=generator, device="cpu").to(targets)
        equal = torch.full((rows, *scores.shape[1:]), 1.0 / classes, dtype=scores.dtype, device=scores.device)
        gradient = leaf.gradient(outputs, equal, made_up)
        if gradient is None or not bool((torch.nan_to_num(gradient) != 0).any()):
            continue
        reads = True
        shifts = _SHIFTS if targets.dim() > 1 else (0,)
        for shift in (shift for shift in shifts if targets.dim() == 1 or abs(shift) < targets.shape[1]):
            pulled, wanted = _moved(gradient.movedim(axis, -1), made_up, shift)
            used = (torch.nan_to_num(pulled) != 0).any(-1)
            if bool(used.any()) and float((pulled.argmin(-1) == wanted)[used].double().mean()) >= _SHOWN_BY:
                return (axis, shift), True
    return None, reads


def _moved(scores: Tensor, targets: Tensor, shift: int) -> tuple[Tensor, Tensor]:
    """Output p beside target p + shift, along dimension 1."""
    if not shift:
        return scores, targets
    length = targets.shape[1] - abs(shift)
    return scores.narrow(1, max(0, -shift), length), targets.narrow(1, max(0, shift), length)


def _soft_axis(leaf: ScoreLeaf, outputs: Any, scores: Tensor, targets: Tensor) -> int:
    """The dimension of classes of targets that are one row of probabilities each."""
    values = targets.double()
    sums = {axis: values.sum(axis) for axis in range(1, targets.dim())}
    axes = [axis for axis, found in sums.items() if torch.allclose(found, torch.ones_like(found), atol=1e-3)]
    if len(axes) == 1 and bool((values >= 0).all()):
        before, after = (leaf.losses(outputs, scores + more, targets) for more in (0.0, 1.0))
        # A loss over classes that exclude each other sees differences of scores alone.
        if before is not None and after is not None and torch.allclose(before, after, rtol=1e-3, atol=1e-4):
            return axes[0]
    raise DataError(
        f"outputs and targets both have shape {tuple(scores.shape)}: metrics by name take class numbers as "
        "targets. For several labels per example or one-hot targets give a torchmetrics object, such as "
        f"torchmetrics.classification.MultilabelAccuracy(num_labels={scores.shape[1]})."
    )


def _scale(leaf: ScoreLeaf, outputs: Any, scores: Tensor, targets: Tensor) -> tuple[bool, bool]:
    """Whether scores of two classes are probabilities, and whether the loss depends on them."""
    if leaf._losses is None:
        return False, False
    low = -1.0 if bool((targets == -1).any()) and not bool((targets == 0).any()) else 0.0

    def losses(target: float, *values: float) -> list[float]:
        # One by one: a loss may refuse some values, and values out of range may be a fault of the device.
        found = (
            leaf.losses(outputs, torch.full_like(scores[:1], value), torch.full_like(targets[:1], target))
            for value in values
        )
        return [math.nan if loss is None else float(loss.detach()) for loss in found]

    near, far, half, above = losses(1.0, 1e-3, 1e-2, 0.5, 0.6)
    least = 1e-6 * max((abs(value) for value in (near, far, half, above) if math.isfinite(value)), default=0.0)
    if near - far > 3.0 * max(half - above, 0.0) + least:
        return True, True  # it grows without bound as the probability of the target goes to 0
    at_low, *below = losses(low, 0.0, -0.5, -2.0, -8.0)
    if any(value < at_low - least for value in below):
        return False, True
    varies = abs(near - above) > least or any(value > at_low + least for value in below)
    if varies:
        return True, True  # nothing below 0 suits the first class better: the scores estimate the target itself
    if bool(((scores < 0) | (scores > 1)).any()):
        return False, False
    raise DataError(
        "whether the outputs are probabilities or log odds cannot be told: all of them lie in [0, 1], and loss_fn does "
        f"not depend on them; {_OBJECT}"
    )


def _first_fraction(labels: Tensor) -> float:
    return float(labels[labels != labels.round()][0])


#: What metrics by name may be given of a batch.
VIEWS: dict[str, type[ClassScores] | type[NumberScores]] = {"classes": ClassScores, "numbers": NumberScores}


class BatchViews:
    """Views of batches for metrics by name; the first batch decides how outputs and targets pair.

    Args:
        losses: Of the user's loss; None if it is not known.

    Example:
        >>> views = BatchViews(EvaluationLosses(torch.nn.BCELoss()))
        >>> views.pairs("classes", "accuracy", torch.tensor([[0.9], [0.2]]), torch.tensor([[1.0], [0.0]]))[1]
        tensor([1, 0])
    """

    def __init__(self, losses: EvaluationLosses | None) -> None:
        self._losses = losses
        self._read: dict[str, Any] = {}

    def read(self, view: str, name: str, outputs: Any, targets: Any) -> Any:
        """The ``ClassScores`` or ``NumberScores`` that the first batch has shown.

        Raises:
            DataError: The metric ``name`` cannot be computed of such outputs and targets.
        """
        if view not in self._read:
            self._read[view] = VIEWS[view].read(name, outputs, targets, self._losses)
        return self._read[view]

    def pairs(self, view: str, name: str, outputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
        """Predictions and targets of a batch.

        Raises:
            DataError: As of ``read``, or a target is out of range.
        """
        found: tuple[Tensor, Tensor] = self.read(view, name, outputs, targets).pairs(outputs, targets)
        return found
