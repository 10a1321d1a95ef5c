"""The view of a batch for metrics by name: paired scores and targets, without targets that the loss ignores."""

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
    """How class scores are laid out in the outputs, and how they pair with the targets.

    Args:
        leaf: Finds the tensor of scores, (B, ...).
        axis: Its class dimension; None for binary scores, one per target, of the second class.
        shift: Output p is compared with target p + shift, along the first dimension after the examples.
        num_classes: 2 or more.
        are_probabilities: Whether the scores are already probabilities.
        soft: Whether each target is a row of class probabilities.
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
        """Read the layout from the first batch.

        Raises:
            DataError: The outputs are not class scores, the targets are not class indices, or their pairing cannot be
                determined.
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
        """Probabilities, float64, of shape (M,) for two classes and (M, classes) for more, and class indices (M,).

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
        """Which scores the loss compares with a target, without the class dimension; None if that is not known."""
        if not self.reads or self.soft:
            return None
        # With equal scores, every target that counts has a nonzero gradient; it may vanish if the network is certain.
        gradient = self.leaf.gradient(outputs, torch.full_like(scores, 1.0 / self.num_classes), targets)
        if gradient is None:
            return None
        zero = (gradient == 0) | gradient.isnan()
        return ~zero if self.axis is None else ~zero.all(self.axis)

    def _labels(self, scores: Tensor, labels: Tensor) -> Tensor:
        if labels.is_floating_point() and bool((labels != labels.round()).any()):
            raise DataError(
                f"metrics by name take class indices as targets, got {_first_fraction(labels):.4g}; {OTHER_METRICS}, "
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
        # torchmetrics guesses from the range of each batch whether it holds scores or probabilities, and guesses wrong
        # for small scores, so it is only given probabilities. Double precision keeps large scores distinct.
        if self.axis is None:
            return values.clamp(0.0, 1.0) if self.are_probabilities else values.sigmoid()
        values = values if self.are_probabilities else values.softmax(-1)
        return values[:, 1] if self.num_classes == 2 else values


@dataclass(frozen=True)
class NumberScores:
    """Outputs and targets of a regression task, paired element by element.

    Args:
        leaf: Finds the tensor of predictions.
        reads: Whether the loss depends on the predictions, so that it shows which targets it ignores.
    """

    leaf: ScoreLeaf
    reads: bool

    @classmethod
    def read(cls, name: str, outputs: Any, targets: Any, losses: EvaluationLosses | None) -> NumberScores:
        """Read the layout from the first batch.

        Raises:
            DataError: The outputs are not one tensor, or their shape differs from that of the targets.
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
        """Predictions and targets that the loss does not ignore, both (M,)."""
        scores = self.leaf.of(outputs)
        wanted = torch.nan_to_num(targets.reshape(scores.shape).to(scores.dtype))
        labels = targets.reshape(scores.shape)
        counted = torch.full_like(scores, not self.reads, dtype=torch.bool)
        for other in _others(scores, wanted) if self.reads else ():
            gradient = self.leaf.gradient(outputs, other, targets)
            counted |= torch.ones_like(counted) if gradient is None else (gradient != 0) & ~gradient.isnan()
        return scores[counted], labels[counted].to(scores.dtype)


def _others(scores: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Two sets of outputs that differ from the targets; the gradient can be zero only at the targets."""
    if all(bool(((values >= 0) & (values <= 1)).all()) for values in (scores, wanted)):
        # On a GPU, a loss of probabilities may crash the process if it is given anything else.
        inwards = (0.5 - wanted).sign() + (wanted == 0.5)
        return wanted + 0.3 * inwards, wanted + 0.45 * inwards
    return wanted + 1.0, wanted - 2.0


def _one_tensor(name: str, targets: Any) -> Tensor:
    if not isinstance(targets, Tensor):
        raise DataError(
            f"the metric {name!r} takes the targets as one tensor, but got a {type(targets).__name__}; "
            f"{OTHER_METRICS} that picks the tensor"
        )
    return targets


def _first_fraction(labels: Tensor) -> float:
    return float(labels[labels != labels.round()][0])


#: Views of a batch that metrics by name may receive.
VIEWS: dict[str, type[ClassScores] | type[NumberScores]] = {"classes": ClassScores, "numbers": NumberScores}


class BatchViews:
    """Views of batches for metrics by name; the first batch decides how outputs and targets pair.

    Args:
        losses: Losses of the user's loss function; None if it is unknown.

    Example:
        >>> views = BatchViews(EvaluationLosses(torch.nn.BCELoss()))
        >>> views.pairs("classes", "accuracy", torch.tensor([[0.9], [0.2]]), torch.tensor([[1.0], [0.0]]))[1]
        tensor([1, 0])
    """

    def __init__(self, losses: EvaluationLosses | None) -> None:
        self._losses = losses
        self._read: dict[str, Any] = {}

    def read(self, view: str, name: str, outputs: Any, targets: Any) -> Any:
        """The ``ClassScores`` or ``NumberScores`` found in the first batch.

        Raises:
            DataError: The metric ``name`` cannot be computed from such outputs and targets.
        """
        if view not in self._read:
            self._read[view] = VIEWS[view].read(name, outputs, targets, self._losses)
        return self._read[view]

    def pairs(self, view: str, name: str, outputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
        """Predictions and targets of a batch.

        Raises:
            DataError: See ``read``; or a target is out of range.
        """
        found: tuple[Tensor, Tensor] = self.read(view, name, outputs, targets).pairs(outputs, targets)
        return found
