"""Membership inference by repeated queries: noise that is not charged washes out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from dpmodel.prediction.answer import Answer
from monitors import checks
from monitors.errors import BudgetExhausted

#: Largest error probability of an interval: it lies outside in one case of twenty.
_CONFIDENCE = 0.95

#: Queries for each example that are sent at once, which is faster.
_AT_ONCE = 64


@dataclass(frozen=True)
class AttackPoint:
    """Success of a membership attack.

    Args:
        repeats: Number of queries for each example.
        auc: Area under the ROC curve: 0.5 for guessing, 1 for certainty.
        advantage: True positive rate minus false positive rate, at a threshold that was chosen on other examples.
        interval: Of the advantage, at 95 %.
    """

    repeats: int
    auc: float
    advantage: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class SamplingAttack:
    """Result of ``sampling_attack``.

    Args:
        points: Success by number of queries, in ascending order.
        exhausted: Number of queries for each example after which the budget ended the attack; None if it did not.
    """

    points: list[AttackPoint]
    exhausted: int | None


def sampling_attack(
    query: Callable[[Tensor], Answer],
    x: Tensor,
    y: Tensor,
    members: ArrayLike,
    repeats: Sequence[int] = (1, 10, 100, 1000),
) -> SamplingAttack:
    """Tell training examples from others by the mean of many noisy answers.

    Each example is queried again and again; the noise of the mean falls with the square root of the number of queries.
    Examples whose true class stands out most are taken for members: a network is surer of what it was trained on.

    Args:
        query: The interface under attack, such as ``DPLogits(...).query``.
        x: Examples, shape (N, ...), about half of them members.
        y: Their classes, int64 of shape (N,).
        members: Which examples the network was trained on, bool of shape (N,).
        repeats: Numbers of queries at which the attack is judged, ascending.

    Returns:
        Success at those numbers that the budget allowed.

    Raises:
        ValueError: There are too few members or others, or ``repeats`` does not ascend.

    References:
        Rahimian, Orekondy and Fritz 2020, "Sampling Attacks: Amplification of Membership Inference Attacks by Repeated
        Queries".
    """
    inside = np.asarray(members, dtype=bool)
    checks.positive_int(**{f"repeats[{index}]": count for index, count in enumerate(repeats)})
    if list(repeats) != sorted(set(repeats)):
        raise ValueError(f"repeats must ascend, got {list(repeats)}")
    if inside.shape != (len(x),) or min(inside.sum(), (~inside).sum()) < 4:
        raise ValueError("members must say for each example whether it is one, with at least 4 members and 4 others")
    asked = RepeatedQueries(query, x)
    points: list[AttackPoint] = []
    for mark in repeats:
        if not asked.up_to(mark):
            return SamplingAttack(points, asked.done)
        points.append(_judged(mark, asked.margins(y), inside))
    return SamplingAttack(points, None)


class RepeatedQueries:
    """The sum of all answers to the same inputs, which are queried again and again.

    Args:
        query: The interface under attack.
        x: Examples, shape (N, ...).

    Attributes:
        done: Number of queries for each example so far.
    """

    def __init__(self, query: Callable[[Tensor], Answer], x: Tensor) -> None:
        self._query, self._x = query, x
        self._total = torch.zeros((), dtype=torch.float64)
        self.done = 0

    def up_to(self, mark: int) -> bool:
        """Query until there are ``mark`` answers for each example; False if the budget ends before."""
        while self.done < mark:
            answers = _answers(self._query, self._x, min(mark - self.done, _AT_ONCE))
            if answers is None:
                return False
            self._total, self.done = self._total + answers.sum(dim=0), self.done + len(answers)
        return True

    def margins(self, y: Tensor) -> NDArray[np.float64]:
        """Mean score of the class ``y`` over the best other mean score, shape (N,)."""
        return _margins(self._total / self.done, y)


def _answers(query: Callable[[Tensor], Answer], x: Tensor, count: int) -> Tensor | None:
    """Scores (queries, N, classes) of ``count`` queries for each example, or of one; None if no query is left."""
    for asked in dict.fromkeys((count, 1)):
        try:
            answer = query(x.repeat(asked, *[1] * (x.dim() - 1)))
        except BudgetExhausted:
            continue
        return answer.scores.nan_to_num().view(asked, len(x), -1)
    return None


def advantage_bound(mu: float) -> float:
    """Largest advantage of any attack on one example, if all its answers are a Gaussian mechanism of ``mu``.

    Args:
        mu: Sensitivity over noise, ``sqrt(sum 1 / multiplier^2)``; at least 0.

    Example:
        >>> round(advantage_bound(1.0), 3)
        0.383
    """
    checks.non_negative(mu=mu)
    return math.erf(mu / 2 / math.sqrt(2))


def _margins(scores: Tensor, y: Tensor) -> NDArray[np.float64]:
    """Score of the true class over the best other one."""
    own = scores.gather(1, y.unsqueeze(1)).squeeze(1)
    others = scores.scatter(1, y.unsqueeze(1), -torch.inf).amax(dim=1)
    margins: NDArray[np.float64] = (own - others).numpy()
    return margins


def _judged(repeats: int, margins: NDArray[np.float64], inside: NDArray[np.bool_]) -> AttackPoint:
    from scipy.stats import norm, rankdata

    ranks, count = rankdata(margins), (int(inside.sum()), int((~inside).sum()))
    auc = (ranks[inside].sum() - count[0] * (count[0] + 1) / 2) / (count[0] * count[1])
    # Every other member, and every other non-member, only serves to choose the threshold.
    tuning = np.zeros(len(inside), dtype=bool)
    for group in (inside, ~inside):
        tuning[np.flatnonzero(group)[::2]] = True
    threshold = _best_threshold(margins[tuning], inside[tuning])
    taken, judged = margins > threshold, ~tuning
    rates = [taken[judged & group].mean() for group in (inside, ~inside)]
    sizes = [(judged & group).sum() for group in (inside, ~inside)]
    # Agresti and Caffo: two successes and failures more, which holds at rates of 0 and 1 too.
    padded = [(rate * size + 1) / (size + 2) for rate, size in zip(rates, sizes, strict=True)]
    spread = math.sqrt(sum(rate * (1 - rate) / (size + 2) for rate, size in zip(padded, sizes, strict=True)))
    middle, reach = padded[0] - padded[1], float(norm.ppf(0.5 + _CONFIDENCE / 2)) * spread
    interval = max(-1.0, middle - reach), min(1.0, middle + reach)
    return AttackPoint(repeats, float(auc), float(rates[0] - rates[1]), interval)


def _best_threshold(margins: NDArray[np.float64], inside: NDArray[np.bool_]) -> float:
    order = np.argsort(margins)
    gain = np.where(inside[order], -1.0 / inside.sum(), 1.0 / (~inside).sum()).cumsum()
    best = int(gain.argmax())
    return float(margins[order][best]) if gain[best] > 0 else -math.inf
