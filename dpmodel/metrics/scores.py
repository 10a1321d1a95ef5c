"""What metrics by name are given of a batch: scores and targets side by side, without those that the loss ignores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dpmodel.metrics.evaluation_losses import EvaluationLosses
from dpmodel.metrics.pairing import (
    OTHER_METRICS,
    class_numbers,
    is_binary,
    moved,
    pairing,
    scale,
    soft_axis,
    without_ones,
)
from dpmodel.metrics.score_leaf import ScoreLeaf
from monitors.errors import DataError

#: torch's own value for targets that a loss ignores.
IGNORED = -100


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
        if is_binary(scores, targets):
            probabilities, reads = scale(leaf, outputs, scores, targets)
            return cls(leaf, None, 0, 2, probabilities, False, reads)
        soft = scores.shape == targets.shape
        if soft:
            axis = soft_axis(leaf, outputs, scores, targets)
            shift, reads = 0, True
        else:
            axis, shift, reads = pairing(leaf, outputs, scores, class_numbers(scores, targets))
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
            labels = targets.argmax(self.axis) if self.soft else class_numbers(scores, targets)
            shown = torch.ones(values.shape[:-1], dtype=torch.bool, device=values.device)
            shown = shown if counted is None else counted
            values, labels, shown = (*moved(values, labels, self.shift), moved(shown, labels, self.shift)[0])
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
                f"metrics by name take class numbers as targets, got {_first_fraction(labels):.4g}; {OTHER_METRICS}, "
                "or the metrics mae and mse"
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
        reads: Whether the loss depends on it, so that it shows which targets it ignores.
    """

    leaf: ScoreLeaf
    reads: bool

    @classmethod
    def read(cls, name: str, outputs: Any, targets: Any, losses: EvaluationLosses | None) -> NumberScores:
        """From the first batch.

        Raises:
            DataError: The outputs are not one tensor, or of another shape than the targets.
        """
        targets = _one_tensor(name, targets)
        leaf = ScoreLeaf(name, outputs, targets, losses)
        scores = leaf.of(outputs)
        if without_ones(scores) != without_ones(targets):
            raise DataError(
                f"the metric {name!r} compares element by element, but the outputs have shape {tuple(scores.shape)} "
                f"and the targets {tuple(targets.shape)}; {OTHER_METRICS}"
            )
        made_up = torch.zeros_like(targets)
        gradient = leaf.gradient(outputs, torch.ones_like(scores), made_up)
        return cls(leaf, gradient is not None and bool((torch.nan_to_num(gradient) != 0).any()))

    def pairs(self, outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions and targets, both (M,): those that the loss does not ignore."""
        scores = self.leaf.of(outputs)
        wanted = torch.nan_to_num(targets.reshape(scores.shape).to(scores.dtype))
        labels = targets.reshape(scores.shape)
        counted = torch.full_like(scores, not self.reads, dtype=torch.bool)
        for other in _others(scores, wanted) if self.reads else ():
            gradient = self.leaf.gradient(outputs, other, targets)
            counted |= torch.ones_like(counted) if gradient is None else (gradient != 0) & ~gradient.isnan()
        return scores[counted], labels[counted].to(scores.dtype)


def _others(scores: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs that differ from the targets, at which alone the gradient may be zero."""
    if all(bool(((values >= 0) & (values <= 1)).all()) for values in (scores, wanted)):
        # A loss of probabilities may end the process on a GPU if it is given anything else.
        inwards = (0.5 - wanted).sign() + (wanted == 0.5)
        return wanted + 0.3 * inwards, wanted + 0.45 * inwards
    return wanted + 1.0, wanted - 2.0


def _one_tensor(name: str, targets: Any) -> Tensor:
    if not isinstance(targets, Tensor):
        raise DataError(
            f"the metric {name!r} takes the targets as one tensor, but the data give a {type(targets).__name__}; "
            f"{OTHER_METRICS} that picks from it"
        )
    return targets


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
