"""Schedules: functions from the step, counted from 0, to a value.

They are in the lowest package so that the noise mechanism that draws with a schedule and the monitor that plans with it
use the same function; no decay is implemented twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

from monitors import checks
from monitors.registry import Registry

Schedule = Callable[[int], float]

DECAYS: Registry[Callable[..., Schedule]] = Registry("noise decay policy")


def constant(value: float) -> Schedule:
    """The same value at every step.

    Example:
        >>> constant(1.5)(1000)
        1.5
    """
    checks.positive(value=value)
    return partial(_constant, value)


@DECAYS.register("Time")
def time_decay(initial: float, rate: float) -> Schedule:
    """``initial / (1 + rate * step)``.

    Args:
        initial: Value at step 0, positive.
        rate: At least 0.

    Example:
        >>> time_decay(1.0, 0.5)(2)
        0.5
    """
    checks.positive(initial=initial)
    checks.non_negative(rate=rate)
    return partial(_time_decay, initial, rate)


@DECAYS.register("Step")
def step_decay(initial: float, rate: float) -> Schedule:
    """``initial * (1 - rate) ** step``.

    Args:
        initial: Value at step 0, positive.
        rate: In [0, 1).

    Example:
        >>> step_decay(1.0, 0.5)(2)
        0.25
    """
    checks.positive(initial=initial)
    checks.unit_interval(rate=rate)
    if rate == 1:
        raise ValueError("rate must be below 1, got 1: the noise would be zero from the second step on")
    return partial(_step_decay, initial, rate)


@DECAYS.register("Exp")
def exp_decay(initial: float, rate: float) -> Schedule:
    """``initial * exp(-rate * step)``.

    Args:
        initial: Value at step 0, positive.
        rate: At least 0.

    Example:
        >>> exp_decay(1.0, 0.0)(2)
        1.0
    """
    checks.positive(initial=initial)
    checks.non_negative(rate=rate)
    return partial(_exp_decay, initial, rate)


def decayed(initial: float, policy: str | None = None, rate: float = 0.0) -> Schedule:
    """The schedule of a decay policy; constant if ``policy`` is None.

    Raises:
        ValueError: The policy is unknown; the message suggests the nearest.

    Example:
        >>> decayed(2.0, "Time", 1.0)(1)
        1.0
    """
    return constant(initial) if policy is None else DECAYS.create(policy, initial, rate)


#: Functions from the progress of the steps to the progress between the first and last value; both from 0 to 1.
PATHS: Registry[Callable[[float], float]] = Registry("schedule path")


@PATHS.register("Linear")
def linear_path(progress: float) -> float:
    """At a constant rate."""
    return progress


@PATHS.register("Cosine")
def cosine_path(progress: float) -> float:
    """Slow at both ends: ``(1 - cos(pi progress)) / 2``."""
    return (1.0 - math.cos(math.pi * progress)) / 2.0


def between(initial: float, final: float, path: str, first_step: int, last_step: int) -> Schedule:
    """``initial`` up to ``first_step``, then a change along ``path`` to ``final`` at ``last_step``, then constant.

    Args:
        initial: Value up to ``first_step``, positive.
        final: Value from ``last_step`` on, positive; above or below ``initial``.
        path: ``"Linear"``, ``"Cosine"``, or a registered name.
        first_step: At least 0.
        last_step: Above ``first_step``.

    Raises:
        ValueError: A value is out of range, or the path is unknown.

    Example:
        >>> late = between(2.0, 1.0, "Linear", first_step=100, last_step=200)
        >>> [late(step) for step in (0, 100, 150, 200, 1000)]
        [2.0, 2.0, 1.5, 1.0, 1.0]
    """
    checks.positive(initial=initial, final=final)
    checks.non_negative_int(first_step=first_step)
    checks.positive_int(last_step=last_step)
    if last_step <= first_step:
        raise ValueError(f"last_step must be above first_step, got {last_step} and {first_step}")
    return partial(_between, initial, final, PATHS.get(path), first_step, last_step)


#: Up to this many steps, ``stretches`` gives each one separately.
MOST_SEPARATE = 20_000
_WIDEST = 1e-4  # relative change of the value within a stretch


def is_monotone(schedule: Schedule) -> bool:
    """Whether a schedule is known never to rise, or never to fall.

    Example:
        >>> is_monotone(exp_decay(2.0, 1e-3)), is_monotone(lambda step: 1.0 + step % 2)
        (True, False)
    """
    if type(schedule) is not partial or schedule.keywords:
        return False
    paths = linear_path, cosine_path
    return schedule.func in _MONOTONE or (schedule.func is _between and schedule.args[2] in paths)


def stretches(schedule: Schedule, first: int, last: int) -> Iterator[tuple[int, int]]:
    """Cut the steps from ``first`` to before ``last`` into stretches in which a monotone schedule hardly changes.

    Yields the step of the smallest value and the number of steps of each stretch. A long training that is charged for
    these steps is charged at least for what it does, and its multipliers are lowered by 0.01 % at most (more only if
    they fall by a factor of 7 and more). Up to ``MOST_SEPARATE`` steps, every step is a stretch.

    Example:
        >>> found = list(stretches(exp_decay(2.0, 1e-6), 0, 1_000_000))
        >>> len(found) < 20_000, sum(count for _, count in found)
        (True, 1000000)
    """
    if last - first <= MOST_SEPARATE:
        yield from ((step, 1) for step in range(first, last))
        return
    widest = max(_WIDEST, _change(schedule, first, last) / MOST_SEPARATE)
    pending = [(first, last)]
    while pending:
        start, stop = pending.pop()
        if stop - start > 1 and _change(schedule, start, stop) > widest:
            middle = (start + stop) // 2
            pending += [(middle, stop), (start, middle)]
            continue
        yield start if schedule(start) < schedule(stop - 1) else stop - 1, stop - start


def _change(schedule: Schedule, start: int, stop: int) -> float:
    """Change of the logarithm between the first and the last step; infinite if the value reaches zero."""
    one, other = schedule(start), schedule(stop - 1)
    return abs(math.log(one / other)) if min(one, other) > 0 and one / other > 0 else math.inf


# Module-level functions, not closures, because a schedule is pickled with the mechanism that draws with it.


def _constant(value: float, step: int) -> float:
    del step
    return value


def _time_decay(initial: float, rate: float, step: int) -> float:
    return initial / (1.0 + rate * step)


def _step_decay(initial: float, rate: float, step: int) -> float:
    return initial * (1.0 - rate) ** step


def _exp_decay(initial: float, rate: float, step: int) -> float:
    return initial * math.exp(-rate * step)


def _between(
    initial: float, final: float, path: Callable[[float], float], first_step: int, last_step: int, step: int
) -> float:
    progress = min(max((step - first_step) / (last_step - first_step), 0.0), 1.0)
    return initial + (final - initial) * path(progress)


_MONOTONE = (_constant, _time_decay, _step_decay, _exp_decay)
