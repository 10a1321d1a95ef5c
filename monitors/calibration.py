"""Calibration: finds the parameter value that meets a privacy target, given a function from that value to a ledger.

The code here knows no mechanism or schedule; only ``make_ledger`` does. The target is never exceeded: the reached
figure lies between one part in a million and one part in ten thousand below it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress

from monitors import checks
from monitors.accountant import Accountant
from monitors.errors import CalibrationError
from monitors.ledger import Ledger
from monitors.root_search import Point, crossing, log_ratio
from monitors.schedules import decayed
from monitors.spent import resolve_accountant

SMALLEST_MULTIPLIER, LARGEST_MULTIPLIER = 1e-2, 1e6
_MARGIN = 1e-6  # below the target, so that a monitor that computes the same figure differently still agrees
_TOLERANCE = 1e-4
_NEAR = 1e-2  # tolerance of a first search with a coarse accountant


def calibrate_noise_multiplier(
    target_epsilon: float,
    target_delta: float,
    make_ledger: Callable[[float], Ledger],
    accountant: str | Accountant = "rdp",
    *,
    tolerance: float = _TOLERANCE,
) -> float:
    """The smallest (initial) noise multiplier whose ledger stays within (target_epsilon, target_delta).

    Args:
        target_epsilon: Positive.
        target_delta: Strictly between 0 and 1.
        make_ledger: Function from the multiplier to the ledger of the whole run; epsilon must not rise with the
            multiplier.
        accountant: Name or object.
        tolerance: How far below the target the reached epsilon may be, relative to the target.

    Returns:
        A multiplier in [0.01, 1e6]; 0.01 if even that meets the target.

    Raises:
        CalibrationError: Even the largest multiplier misses the target, because other releases alone exceed it; the
            message states the smallest reachable epsilon.

    Example:
        >>> from monitors import GaussianEvent, PoissonSampledEvent
        >>> def make_ledger(sigma):
        ...     return Ledger().record(PoissonSampledEvent(512 / 60000, GaussianEvent(sigma)), count=4680)
        >>> sigma = calibrate_noise_multiplier(3.0, 1e-5, make_ledger)
        >>> round(sigma, 2)
        1.12
    """
    chosen = _checked(target_epsilon, target_delta, accountant)
    checks.open_unit(tolerance=tolerance)

    def search(judge: Accountant, start: float, tolerance: float) -> tuple[Point, Point | None]:
        def height(place: float) -> float:
            epsilon = judge.epsilon(make_ledger(math.exp(place)), target_delta)
            return log_ratio(epsilon, target_epsilon * (1 - _MARGIN))

        return crossing(
            height,
            start,
            low=math.log(SMALLEST_MULTIPLIER),
            high=math.log(LARGEST_MULTIPLIER),
            done=lambda good, bad: good.height > -tolerance or good.place - bad.place < 1e-12,
            aim=-tolerance / 2,
        )

    coarse, start = chosen.coarse(), 0.0
    if coarse is not chosen:  # a slow accountant is asked near the answer only
        start = search(coarse, start, _NEAR)[0].place
    met, missed = search(chosen, start, tolerance)
    if met.height > 0:
        raise CalibrationError(
            f"no noise multiplier meets epsilon {target_epsilon:g} at delta {target_delta:g}: at the largest one, "
            f"{LARGEST_MULTIPLIER:g}, epsilon is still {_figure(met, target_epsilon):.6g}, because of releases that do "
            "not depend on it. Raise the target above that, or make those releases noisier."
        )
    return math.exp(met.place) if missed is not None else SMALLEST_MULTIPLIER


def calibrate_parameter(
    target_epsilon: float,
    target_delta: float,
    make_ledger: Callable[[float], Ledger],
    accountant: str | Accountant = "rdp",
    *,
    low: float,
    high: float,
    tolerance: float = _TOLERANCE,
) -> float:
    """The largest value in [low, high] whose ledger stays within the target, for a parameter that costs privacy.

    Examples are a decay rate, a sampling rate, or a (real) number of queries. Epsilon must not fall with the value.

    Raises:
        CalibrationError: Even ``low`` misses the target; the message states the epsilon at ``low``.

    Example:
        The fastest exponential decay of the noise over 1000 full-batch steps:

        >>> from monitors import GaussianEvent
        >>> from monitors.schedules import exp_decay
        >>> def make_ledger(rate):
        ...     sigma, ledger = exp_decay(100.0, rate), Ledger()
        ...     for step in range(1000):
        ...         ledger.record(GaussianEvent(sigma(step)))
        ...     return ledger
        >>> round(calibrate_parameter(3.0, 1e-5, make_ledger, "zcdp", low=0.0, high=0.1), 6)
        0.001355
    """
    chosen = _checked(target_epsilon, target_delta, accountant)
    if not low < high:
        raise ValueError(f"low must be below high, got low={low!r} and high={high!r}")

    def height(place: float) -> float:
        epsilon = chosen.epsilon(make_ledger(-place), target_delta)
        return log_ratio(epsilon, target_epsilon * (1 - _MARGIN))

    met, _ = crossing(
        height,
        -high,
        low=-high,
        high=-low,
        done=lambda good, bad: good.height > -tolerance or good.place - bad.place < 1e-12 * (high - low),
        aim=-tolerance / 2,
    )
    if met.height > 0:
        raise CalibrationError(
            f"no value in [{low:g}, {high:g}] meets epsilon {target_epsilon:g} at delta {target_delta:g}: at {low:g} "
            f"epsilon is already {_figure(met, target_epsilon):.6g}. Raise the target above that, or add noise."
        )
    return -met.place


def max_steps(
    target_epsilon: float,
    target_delta: float,
    make_ledger: Callable[[int], Ledger],
    accountant: str | Accountant = "rdp",
    *,
    limit: int = 10_000_000,
) -> int:
    """The largest number of steps whose ledger stays within (target_epsilon, target_delta).

    Args:
        target_epsilon: Positive.
        target_delta: Strictly between 0 and 1.
        make_ledger: Function from the number of steps (at least 1) to their ledger; epsilon must not fall with the
            number.
        accountant: Name or object.
        limit: Largest number to try.

    Returns:
        Number of steps; 0 if not even one fits.

    Raises:
        CalibrationError: More than ``limit`` steps fit.

    Example:
        >>> from monitors import GaussianEvent
        >>> max_steps(3.0, 1e-5, lambda steps: Ledger().record(GaussianEvent(10.0), steps), "zcdp")
        51
    """
    chosen = _checked(target_epsilon, target_delta, accountant)
    checks.positive_int(limit=limit)

    def fits(steps: int) -> float:
        return log_ratio(chosen.epsilon(make_ledger(steps), target_delta), target_epsilon)

    coarse, start = chosen.coarse(), 1
    if coarse is not chosen:  # a slow accountant is asked near the answer only
        with suppress(CalibrationError):
            start = max(1, max_steps(target_epsilon, target_delta, make_ledger, coarse, limit=limit))
    good, bad = (start, fits(start)), None
    if good[1] > 0 and start > 1:
        good, bad = (1, fits(1)), good
    if good[1] > 0:
        return 0
    while bad is None and good[0] < limit:
        # epsilon grows about like sqrt(steps): aim slightly past the crossing that this predicts
        growth = math.exp(min(max(-2.2 * good[1], math.log(1.5 if good[0] == 1 else 1.02)), math.log(64.0)))
        steps = min(limit, math.ceil(good[0] * growth))
        point = (steps, fits(steps))
        good, bad = (point, None) if point[1] <= 0 else (good, point)
    if bad is None:
        raise CalibrationError(f"more than {limit} steps fit into epsilon {target_epsilon:g} at delta {target_delta:g}")
    return _whole_crossing(fits, good, bad)


def _whole_crossing(fits: Callable[[int], float], good: tuple[int, float], bad: tuple[int, float]) -> int:
    """The largest integer that fits, between one that fits and one that does not."""
    last, stalled = [good, bad], 0
    while bad[0] - good[0] > 1:
        width = bad[0] - good[0]
        guess = _log_secant(last) if stalled < 3 else math.nan
        steps = math.floor(guess) if good[0] < guess + 1 and guess < bad[0] + 1 else good[0] + width // 2
        steps = min(max(steps, good[0] + 1), bad[0] - 1)
        point = (steps, fits(steps))
        good, bad = (point, bad) if point[1] <= 0 else (good, point)
        last = [last[1], point]
        stalled = stalled + 1 if bad[0] - good[0] > width / 2 else 0
    return good[0]


def _log_secant(last: list[tuple[int, float]]) -> float:
    """Steps at which the line through two points, on a logarithmic scale of steps, meets the target exactly."""
    (first, first_height), (second, second_height) = last
    rise = second_height - first_height
    if not (math.isfinite(first_height) and math.isfinite(second_height)) or rise == 0:
        return math.nan
    exponent = math.log(second) - second_height * (math.log(second) - math.log(first)) / rise
    return math.exp(min(exponent, 60.0))


def decay_rate_for(policy: str, initial: float, final: float, steps: int) -> float:
    """The rate at which a decay policy goes from ``initial`` to ``final`` at the last of ``steps`` steps.

    Args:
        policy: Name of a decay policy, as in ``monitors.schedules.decayed``.
        initial: Multiplier of the first step, positive.
        final: Multiplier of the last step, in (0, initial].
        steps: At least 2.

    Raises:
        ValueError: ``final`` is above ``initial``, or ``steps`` is below 2.

    Example:
        >>> round(decay_rate_for("Time", 2.0, 1.0, 1001), 9)
        0.001
    """
    checks.positive(initial=initial, final=final)
    checks.positive_int(steps=steps)
    if final > initial or steps < 2:
        raise ValueError(
            f"final must be at most initial and steps at least 2, got {final!r}, {initial!r} and {steps!r}"
        )

    def last(rate: float) -> float:
        return decayed(initial, policy, rate)(steps - 1)

    low, high = 0.0, 1.0 - 2**-53  # the end of the 'Step' policy's range
    while policy != "Step" and last(high) > final:
        low, high = high, 2 * high
    for _ in range(200):
        middle = low + (high - low) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if last(middle) >= final else (low, middle)
    return low


def _checked(target_epsilon: float, target_delta: float, accountant: str | Accountant) -> Accountant:
    checks.positive(target_epsilon=target_epsilon)
    checks.open_unit(target_delta=target_delta)
    return resolve_accountant(accountant)


def _figure(point: Point, target: float) -> float:
    return target * math.exp(point.height) if point.height < 700 else math.inf
