"""Root search for a monotone figure, with few evaluations, because each may take a tenth of a second."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

_MOST_EVALUATIONS = 200
_WIDEST_JUMP = math.log(8.0)
_USUAL_SLOPE = 1.4  # slope of log epsilon against minus log multiplier: between 1 (full batch) and about 2
_PATIENCE = 3  # slow secant steps (leaving over half of the bracket) before a bisection


@dataclass(frozen=True)
class Point:
    """An evaluated point.

    Args:
        place: Value of the searched coordinate.
        height: log(figure / target); at most 0 if the target is met.
    """

    place: float
    height: float


def log_ratio(figure: float, target: float) -> float:
    """log(figure / target), also for a figure of 0 or infinity."""
    if figure <= 0:
        return -math.inf
    return math.inf if math.isinf(figure) else math.log(figure / target)


def crossing(
    height: Callable[[float], float],
    start: float,
    *,
    low: float,
    high: float,
    done: Callable[[Point, Point], bool],
    aim: float = 0.0,
) -> tuple[Point, Point | None]:
    """Search [low, high] for the place at which the decreasing ``height`` falls below 0.

    Args:
        height: Decreasing function of the place; at most 0 means that the target is met.
        start: First place to try.
        low: Smallest place.
        high: Largest place.
        done: Stopping criterion, given the best point that meets the target and the nearest that does not.
        aim: Height to aim at, at most 0; a negative one leaves a margin.

    Returns:
        The smallest point found that meets the target, and the largest that does not (None: all points meet it). If no
        point meets it, the first is ``high`` with its positive height.

    Example:
        >>> def close(good, bad):
        ...     return good.place - bad.place < 1e-9
        >>> met, missed = crossing(lambda x: 2.0 - x, 0.0, low=-9.0, high=9.0, done=close)
        >>> round(met.place, 6)
        2.0
    """
    good: Point | None = None
    bad: Point | None = None
    last: list[Point] = []
    place, stalled = min(max(start, low), high), 0
    for _ in range(_MOST_EVALUATIONS):
        before = math.inf if good is None or bad is None else good.place - bad.place
        point = Point(place, height(place))
        good, bad = (point, bad) if point.height <= 0 else (good, point)
        last = [*last[-1:], point]
        if good is None or bad is None:
            if place in (low, high) and (place == low) == (good is not None):
                break
            place = min(max(_outward(last, aim), low), high)
            continue
        width = good.place - bad.place
        stalled = stalled + 1 if width > 0.5 * before else 0
        place = _secant(last, aim) if stalled < _PATIENCE else math.nan
        if not bad.place < place < good.place:
            place = bad.place + width / 2
        if done(good, bad) or not bad.place < place < good.place:
            break
    return (good, bad) if good is not None else (Point(high, bad.height if bad else math.inf), bad)


def _outward(last: list[Point], aim: float) -> float:
    """The next place while all points lie on one side of the target: a growing step towards it."""
    point = last[-1]
    direction = 1.0 if point.height > 0 else -1.0
    guess = _secant(last, aim) if len(last) == 2 else point.place + point.height / _USUAL_SLOPE
    step = abs(guess - point.place) if math.isfinite(guess) else _WIDEST_JUMP
    previous = abs(point.place - last[0].place)
    return point.place + direction * min(max(1.02 * step, 0.5 * previous, 1e-3), _WIDEST_JUMP)


def _secant(last: list[Point], aim: float) -> float:
    """The place at which the line through the last two points reaches ``aim``; NaN if there is none."""
    first, second = last[0], last[-1]
    slope_height = second.height - first.height
    if not (math.isfinite(first.height) and math.isfinite(second.height)) or slope_height == 0:
        return math.nan
    return second.place + (aim - second.height) * (second.place - first.place) / slope_height
