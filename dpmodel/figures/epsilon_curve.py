"""Epsilon against the step, computed from a ledger."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from monitors.accountant import Accountant
from monitors.events import ViolationEvent
from monitors.ledger import Ledger
from monitors.spent import resolve_accountant

Floats = NDArray[np.float64]

#: A curve with fewer steps than this has epsilon after every step; a longer one has about as many points.
MOST_MARKS = 128
#: Fewest points of a curve if the ledger has so many rows that each point takes noticeable time.
LEAST_MARKS = 24
#: Most points if the accountant is slow, so that it has a ``coarse`` version for figures.
SLOW_MARKS = 48
#: Largest product of ledger rows and curve points; the second constant is for a slow accountant.
_MOST_ROWS, _MOST_SLOW_ROWS = 200_000, 40_000
#: Largest rise between neighbouring points, as a share of the last epsilon, while more points may be computed.
_RESOLUTION = 0.01


@dataclass(frozen=True)
class Privacy:
    """Epsilon over a training.

    Args:
        steps: Steps done, ascending, from 0.
        epsilons: Epsilon after that many steps; non-decreasing, possibly infinite.
        delta: Delta of the epsilons.
        accountant: Name of the accountant.
    """

    steps: tuple[int, ...]
    epsilons: tuple[float, ...]
    delta: float
    accountant: str

    def at(self, steps: Sequence[int]) -> Floats:
        """Epsilon after each of ``steps``, or after the next step at which it is known, so never too small.

        Example:
            >>> Privacy((0, 10, 20), (0.0, 1.0, 1.5), 1e-5, "rdp").at([10, 11, 20]).tolist()
            [1.0, 1.5, 1.5]
        """
        places = np.searchsorted(self.steps, np.asarray(steps)).clip(max=len(self.steps) - 1)
        found: Floats = np.asarray(self.epsilons, dtype=np.float64)[places]
        return found


def epsilon_over(
    ledger: Ledger, steps: Sequence[int], delta: float, accountant: str | Accountant, done: int | None = None
) -> Privacy:
    """Epsilon after each step of a training; for a long training, after about a hundred of its steps.

    The steps of a long training are chosen so that epsilon rises little between neighbours; they include the first
    step, the last step and the ends of the epochs. The epsilon after the last step is the accountant's own figure. The
    earlier ones come from its ``coarse`` version, which is also an upper bound.

    Args:
        ledger: Ledger of the whole training, including lost steps.
        steps: Steps done at the ends of the epochs, ascending.
        delta: Strictly between 0 and 1.
        accountant: Name or object.
        done: Total number of steps; default: the number of kept releases. Additional releases, such as a private
            statistic, are charged from the first step on.

    Example:
        >>> from monitors import GaussianEvent
        >>> curve = epsilon_over(Ledger().record(GaussianEvent(10.0), 4), [2, 4], 1e-5, "zcdp")
        >>> curve.steps, round(curve.epsilons[1], 3), round(curve.epsilons[4], 3)
        ((0, 1, 2, 3, 4), 0.341, 0.726)
    """
    chosen, kept = resolve_accountant(accountant), _kept(ledger)
    last = kept if done is None else done
    others = max(kept - last, 0)
    coarse = chosen.coarse()
    # The last figure includes everything after the last step, such as a violation, as any figure of the training does.
    final = chosen.epsilon(ledger, delta)

    def epsilon(step: int) -> float:
        if step == last:
            return final
        # Epsilon never falls, so the last figure bounds the earlier ones, whose own bounds may be looser.
        return min(coarse.epsilon(first_releases(ledger, step + others), delta), final)

    most = _marks_for(ledger, slow=coarse is not chosen)
    found = _refined(epsilon, [step for step in steps if 0 < step < last], last, most)
    marks = sorted(found)
    # The search inside an accountant may end lower by a rounding error, but epsilon never falls.
    return Privacy((0, *marks), (0.0, *accumulate((found[mark] for mark in marks), max)), delta, chosen.name)


def first_releases(ledger: Ledger, count: int) -> Ledger:
    """``ledger`` as it was after ``count`` kept steps, including everything lost by then.

    A violation is not a step; it belongs to the step that it follows.

    Example:
        >>> from monitors import GaussianEvent
        >>> first_releases(Ledger().record(GaussianEvent(2.0), 5), 3)
        Ledger(3 releases in 1 rows)
    """
    counts = np.array([repeats for _, repeats in ledger], dtype=np.int64)
    kept = np.cumsum(np.where(np.array(ledger.marks, dtype=bool) | _violations(ledger), 0, counts))
    if not kept.size or count > kept[-1]:
        return ledger.head(ledger.total)
    row = int(np.searchsorted(kept, count))
    place = int(counts[:row].sum()) + count - (int(kept[row - 1]) if row else 0)
    if count == kept[row]:
        behind = _violations(ledger)[row + 1 :]
        place += int(counts[row + 1 :][np.logical_and.accumulate(behind)].sum())
    return ledger.head(place)


def _kept(ledger: Ledger) -> int:
    """Releases that are neither lost nor a violation."""
    return sum(count for event, count in ledger.kept if not isinstance(event, ViolationEvent))


def _violations(ledger: Ledger) -> NDArray[np.bool_]:
    return np.array([isinstance(event, ViolationEvent) for event, _ in ledger], dtype=bool)


def _marks_for(ledger: Ledger, *, slow: bool) -> int:
    marks, rows = (SLOW_MARKS, _MOST_SLOW_ROWS) if slow else (MOST_MARKS, _MOST_ROWS)
    return min(marks, max(LEAST_MARKS, rows // max(len(ledger), 1)))


def _refined(epsilon: Callable[[int], float], ends: Sequence[int], last: int, most: int) -> dict[int, float]:
    """``epsilon`` at up to ``most`` steps: all of them if there are few enough, else where it rises most."""
    if last <= most:
        return {step: epsilon(step) for step in range(1, last + 1)}
    found = {step: epsilon(step) for step in (1, *_evenly(ends, most // 2), last)}
    close = _RESOLUTION * max((value for value in found.values() if math.isfinite(value)), default=1.0)
    marks = sorted(found)
    gaps = [(-_rise(found, low, high), low, high) for low, high in pairwise(marks)]
    heapify(gaps)
    while len(found) < most and gaps:
        rise, low, high = heappop(gaps)
        if -rise <= close:
            break
        if high - low < 2:
            continue
        middle = (low + high) // 2
        found[middle] = epsilon(middle)
        for pair in ((low, middle), (middle, high)):
            heappush(gaps, (-_rise(found, *pair), *pair))
    return found


def _rise(found: dict[int, float], low: int, high: int) -> float:
    return 0.0 if math.isinf(found[low]) else found[high] - found[low]


def _evenly(steps: Sequence[int], most: int) -> Iterable[int]:
    """At most ``most`` of ``steps``, evenly spaced."""
    return sorted({steps[round(place)] for place in np.linspace(0, len(steps) - 1, min(len(steps), most))})
