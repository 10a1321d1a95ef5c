"""Checks of the targets against the outputs of the network."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from monitors.errors import DataError

#: Losses whose targets are class indices unless they are floating point.
_CLASS_LOSSES = (nn.CrossEntropyLoss, nn.NLLLoss)

#: Losses that compare outputs and targets element by element.
_ELEMENTWISE_LOSSES = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCELoss, nn.BCEWithLogitsLoss)


def all_targets(dataset: Any) -> Tensor | None:
    """The targets of an in-memory data set or a pair of arrays as one tensor; None if the data must be read first."""
    if isinstance(dataset, torch.utils.data.TensorDataset):
        return dataset.tensors[-1]
    if isinstance(dataset, (tuple, list)) and len(dataset) == 2 and isinstance(dataset[1], (Tensor, np.ndarray)):
        return torch.as_tensor(dataset[1])
    targets = getattr(dataset, "y", None)
    return targets if isinstance(targets, Tensor) else None


def require_class_targets(dataset: Any, outputs: Any, loss_fn: Any) -> None:
    """Refuse targets that a classification loss cannot take; other losses are not checked.

    Args:
        dataset: The training data.
        outputs: The network's outputs for some examples, shape (B, classes, ...).
        loss_fn: The user's loss.

    Raises:
        DataError: A class index is out of range, the targets are not integers, or there is a single output.

    Example:
        >>> data = torch.utils.data.TensorDataset(torch.zeros(2, 4), torch.tensor([0, 7]))
        >>> require_class_targets(data, torch.zeros(2, 3), nn.CrossEntropyLoss())
        Traceback (most recent call last):
            ...
        monitors.errors.DataError: target 7 at row 1 is out of range: the network gives 3 classes, so targets must be...
    """
    targets = all_targets(dataset)
    if not isinstance(loss_fn, _CLASS_LOSSES) or not isinstance(outputs, Tensor):
        return
    if all(type(loss_fn).forward is not kind.forward for kind in _CLASS_LOSSES):  # it may rearrange what it gets
        return
    if outputs.dim() > 1 and outputs.shape[1] == 1:
        raise DataError(
            f"{type(loss_fn).__name__} needs one output per class, but the network has a single output, for which the "
            "loss is always 0. Use BCEWithLogitsLoss for two classes, or MSELoss or L1Loss for numbers"
            + _of_floats(targets)
        )
    if targets is None:
        return
    if targets.is_floating_point():
        if targets.shape[1:] != outputs.shape[1:]:
            raise DataError(
                f"{type(loss_fn).__name__} takes class indices (int64) or one probability per class, got targets of "
                f"type {targets.dtype} and shape {tuple(targets.shape)}; convert them with targets.long()"
            )
        return
    classes = outputs.shape[1]
    ignored = targets == loss_fn.ignore_index
    wrong = torch.nonzero(((targets < 0) | (targets >= classes)) & ~ignored)
    if len(wrong):
        row = tuple(wrong[0].tolist())
        if targets.dim() > 1 and outputs.shape[1:-1] == targets.shape[1:]:
            raise DataError(
                f"{type(loss_fn).__name__} expects the classes in dimension 1, but the network gives outputs of shape "
                f"{tuple(outputs.shape)} for targets of shape {tuple(targets.shape)}, such as of a language model. "
                "Move them in the loss or the network: outputs.movedim(-1, 1)"
            )
        raise DataError(
            f"target {int(targets[row])} at row {row[0]} is out of range: the network gives {classes} classes, so "
            f"targets must be in [0, {classes - 1}]. Correct the labels, or give the network more outputs"
        )


def _of_floats(targets: Tensor | None) -> str:
    """What floating-point targets mean, for the message about a single output."""
    if targets is None or not targets.is_floating_point():
        return ""
    return ". The targets are floats, which means regression; for classes, save class indices as integers"


def require_same_shape(outputs: Any, targets: Any, loss_fn: Any) -> None:
    """Refuse targets that an element-wise loss would broadcast over the outputs; other losses are not checked.

    The usual case is outputs (B, 1) with targets (B,): each output would be compared with every target of the batch.

    Args:
        outputs: The network's outputs for some examples.
        targets: Their targets.
        loss_fn: The user's loss.

    Raises:
        DataError: The shapes differ.

    Example:
        >>> require_same_shape(torch.zeros(2, 1), torch.zeros(2), nn.MSELoss())
        Traceback (most recent call last):
            ...
        monitors.errors.DataError: MSELoss compares element by element, but one output has shape (1,) and one target...
    """
    if not isinstance(loss_fn, _ELEMENTWISE_LOSSES) or not (
        isinstance(outputs, Tensor) and isinstance(targets, Tensor)
    ):
        return
    if outputs.shape != targets.shape:
        raise DataError(
            f"{type(loss_fn).__name__} compares element by element, but one output has shape "
            f"{tuple(outputs.shape[1:])} and one target {tuple(targets.shape[1:])}; give both the same shape "
            "(targets.unsqueeze(1), or outputs.squeeze(1) in the network)"
        )
