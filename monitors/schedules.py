"""Schedules: functions from the step to a value, and nothing more.

They stand in the lowest package so that the noise mechanism that draws with a schedule and the monitor that plans with
it use the same function; there is no second copy of a decay anywhere. Step 0 is the first step.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from monitors import _checks
from monitors._registry import Registry

Schedule = Callable[[int], float]

DECAYS: Registry[Callable[..., Schedule]] = Registry("noise decay policy")


def constant(value: float) -> Schedule:
    """The same value at every step.

    Example:
        >>> constant(1.5)(1000)
        1.5
    """
    _checks.positive(value=value)
    return lambda step: value


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
    _checks.positive(initial=initial)
    _checks.non_negative(rate=rate)
    return lambda step: initial / (1.0 + rate * step)


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
    _checks.positive(initial=initial)
    _checks.unit_interval(rate=rate)
    if rate == 1:
        raise ValueError("rate must be below 1, got 1: the noise would be zero from the second step on")
    return lambda step: initial * (1.0 - rate) ** step


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
    _checks.positive(initial=initial)
    _checks.non_negative(rate=rate)
    return lambda step: initial * math.exp(-rate * step)


def decayed(initial: float, policy: str | None = None, rate: float = 0.0) -> Schedule:
    """The schedule of that decay policy, constant where ``policy`` is None.

    Raises:
        ValueError: Unknown policy; the nearest is suggested.

    Example:
        >>> decayed(2.0, "Time", 1.0)(1)
        1.0
    """
    return constant(initial) if policy is None else DECAYS.create(policy, initial, rate)
