"""The tensor of scores among a network's outputs, and the loss with other scores in its place."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from dpmodel.metrics.evaluation_losses import EvaluationLosses
from monitors.errors import DataError


class ScoreLeaf:
    """The tensor among a network's outputs from which metrics by name are computed.

    Args:
        name: Name of the metric, for messages.
        outputs: Outputs of the first batch.
        targets: Targets of the first batch.
        losses: Losses of the user's loss function; None if it is unknown.

    Attributes:
        knows_loss: Whether the loss function is known.

    Raises:
        DataError: There is no such tensor, or more than one.
    """

    def __init__(self, name: str, outputs: Any, targets: Tensor, losses: EvaluationLosses | None) -> None:
        self._losses = losses
        self.knows_loss = losses is not None
        leaves = tree_leaves(outputs)
        found = [place for place, leaf in enumerate(leaves) if _is_score(leaf, len(targets))]
        if len(found) > 1 and losses is not None:
            found = _read_by(losses, outputs, targets, found) or found
        if len(found) != 1:
            raise DataError(
                f"the metric {name!r} takes the outputs as one tensor, but the network returns a "
                f"{type(outputs).__name__} with {len(found)} tensors of one row per example; use a function of "
                "outputs and targets, or an object with update, compute and reset, that picks the tensor"
            )
        self._place = found[0]

    def of(self, outputs: Any) -> Tensor:
        """The tensor in ``outputs``, detached."""
        leaf: Tensor = tree_leaves(outputs)[self._place]
        return leaf.detach()

    def losses(self, outputs: Any, scores: Tensor, targets: Tensor) -> Tensor | None:
        """Losses (B,) with ``scores`` in place of the tensor; None if they cannot be computed.

        Args:
            outputs: Outputs of at least one example; apart from the scores, the loss sees those of the first example.
            scores: Shape (B, ...).
            targets: Shape (B, ...).
        """
        if self._losses is None:
            return None
        leaves, form = tree_flatten(outputs)
        rows = len(leaves[self._place])
        beside = [leaf if rows == len(scores) else _first_rows(leaf, rows, len(scores)) for leaf in leaves]
        beside[self._place] = scores
        for labels in (targets, targets.to(scores.dtype)):  # some losses only take floats
            with suppress(Exception):
                return self._losses.unchecked(tree_unflatten(beside, form), labels)
        return None

    def gradient(self, outputs: Any, scores: Tensor, targets: Tensor) -> Tensor | None:
        """Gradient of the summed losses for ``scores``; None if there is none, NaN for an example without a loss."""
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


def _is_score(leaf: Any, rows: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.shape[:1] == (rows,)


def _read_by(losses: EvaluationLosses, outputs: Any, targets: Tensor, places: list[int]) -> list[int]:
    """The ``places`` whose tensors the loss depends on."""
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
    """The first row of ``leaf`` repeated ``wanted`` times, if ``leaf`` has one row for each of ``rows`` examples."""
    if not isinstance(leaf, Tensor) or leaf.shape[:1] != (rows,):
        return leaf
    return leaf[:1].expand(wanted, *leaf.shape[1:])
