"""What may be computed from the noisy scores of a private prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from monitors import checks

#: Label of a row to which no answer is given.
NO_LABEL = -1


@dataclass(frozen=True)
class Answer:
    """Noisy scores of a batch, and what follows from them: post-processing, which costs nothing further.

    Args:
        scores: Noisy logits, or noisy counts of votes; shape (B, classes), float64. NaN in rows without an answer.
        votes: Whether the scores are counts of votes.

    Example:
        >>> answer = Answer(torch.tensor([[2.0, 0.0, 1.0], [0.0, 0.1, 0.0]], dtype=torch.float64))
        >>> answer.labels.tolist(), answer.top_k(2).tolist()
        ([0, 1], [[0, 2], [1, 0]])
        >>> answer.confident(0.6).tolist()
        [0, -1]
    """

    scores: Tensor
    votes: bool = False

    @property
    def answered(self) -> Tensor:
        """Which rows have an answer, bool of shape (B,)."""
        return ~self.scores.isnan().any(dim=1)

    @property
    def labels(self) -> Tensor:
        """The class with the largest score, int64 of shape (B,); ``NO_LABEL`` for rows without an answer."""
        return torch.where(self.answered, self.scores.nan_to_num().argmax(dim=1), NO_LABEL)

    @property
    def probabilities(self) -> Tensor:
        """Softmax of the logits, or shares of the votes (negative counts are 0); float64 of shape (B, classes).

        Rows without an answer are NaN.
        """
        if not self.votes:
            return self.scores.softmax(dim=1)
        counts = self.scores.clamp(min=0.0)
        total = counts.sum(dim=1, keepdim=True)
        even = torch.full_like(counts, 1.0 / counts.shape[1])
        return torch.where(total == 0, even, counts / total)

    def top_k(self, k: int) -> Tensor:
        """The ``k`` classes with the largest scores, best first, int64 of shape (B, k)."""
        checks.positive_int(k=k)
        if k > self.scores.shape[1]:
            raise ValueError(f"k must be at most the number of classes, {self.scores.shape[1]}, got {k}")
        order = self.scores.nan_to_num().topk(k, dim=1).indices
        return torch.where(self.answered.unsqueeze(1), order, NO_LABEL)

    def to_dict(
        self,
        *,
        labels: bool = True,
        probabilities: bool = False,
        top_k: int | None = None,
        threshold: float | None = None,
    ) -> dict[str, list[Any]]:
        """Plain JSON values, one list per question with one entry per row.

        Args:
            labels: Whether to give ``labels``.
            probabilities: Whether to give ``probabilities``; None for rows without an answer, or where they are NaN.
            top_k: Number of classes of ``top_k``; None leaves it out.
            threshold: Probability of ``confident``; None leaves it out.

        Example:
            >>> Answer(torch.tensor([[2.0, 0.0, 1.0]], dtype=torch.float64)).to_dict(top_k=2, threshold=0.9)
            {'labels': [0], 'top_k': [[0, 2]], 'confident': [-1]}
        """
        found: dict[str, list[Any]] = {"labels": self.labels.tolist()} if labels else {}
        if probabilities:
            shares = self.probabilities  # NaN too for infinite exact logits, which JSON cannot hold
            rows = zip(shares.tolist(), shares.isfinite().all(dim=1).tolist(), strict=True)
            found["probabilities"] = [row if finite else None for row, finite in rows]
        if top_k is not None:
            found["top_k"] = self.top_k(top_k).tolist()
        if threshold is not None:
            found["confident"] = self.confident(threshold).tolist()
        return found

    def confident(self, threshold: float) -> Tensor:
        """Labels (B,) whose probability is at least ``threshold``; ``NO_LABEL`` elsewhere."""
        checks.open_unit(threshold=threshold)
        sure = self.probabilities.nan_to_num().amax(dim=1) >= threshold
        return torch.where(sure, self.labels, NO_LABEL)
