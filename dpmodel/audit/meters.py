"""Meters: the noise, the contribution of a canary, correlations and the sampling, each against the ledger."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from dpmodel.audit.bounds import (
    CONFIDENCE,
    GAUSSIAN_CONFIDENCE,
    ErrorCounts,
    Guesses,
    f_dp_epsilon,
    f_dp_p_value,
    gaussian_mu_bound,
    gaussian_p_value,
    one_run_epsilon,
    one_run_p_value,
)
from dpmodel.audit.draws import draw_lines
from dpmodel.audit.lines import Line
from dpmodel.audit.scores import Expected, responses
from dpmodel.audit.training import Observed
from dpmodel.audit.watch import Stretch
from monitors.gaussian import gaussian_epsilon, gaussian_mu

Floats = NDArray[np.float64]


def all_lines(observed: Observed, found: Floats) -> list[Line]:
    """All lines of the report.

    Args:
        observed: The audited training.
        found: The scores of the canaries, shape (m,).
    """
    return [
        *bound_lines(observed, found),
        *noise_lines(observed),
        *contribution_lines(observed),
        *correlation_lines(observed),
        *draw_lines(observed),
    ]


def bound_lines(observed: Observed, found: Floats) -> Iterator[Line]:
    """The three lower bounds on epsilon, which the ledger's epsilon must not be below."""
    epsilon, delta, coins = observed.epsilon, observed.delta, observed.included
    mu = gaussian_mu(max(epsilon, 1e-6), delta)
    expected = Expected.of(observed)
    percent = f"{CONFIDENCE:.0%}"

    made = expected.number_of_guesses(lambda guesses: one_run_epsilon(guesses, delta))
    guesses = Guesses.of(found, coins, made)
    yield Line(
        "bounds",
        "epsilon, one run",
        one_run_epsilon(guesses, delta),
        epsilon,
        "<=",
        one_run_p_value(guesses, epsilon, delta),
        f"{percent}, {guesses.correct:,} of {made:,} guesses correct",
    )
    made = expected.number_of_guesses(lambda guesses: f_dp_epsilon(guesses, delta))
    guesses = Guesses.of(found, coins, made)
    yield Line(
        "bounds",
        "epsilon, f-DP one run",
        f_dp_epsilon(guesses, delta),
        epsilon,
        "<=",
        f_dp_p_value(guesses, mu),
        f"{percent}, {guesses.correct:,} of {made:,} guesses correct",
    )
    errors = ErrorCounts.at(expected.threshold(), found, coins)
    yield Line(
        "bounds",
        "epsilon, Gaussian",
        gaussian_epsilon(gaussian_mu_bound(errors), delta),
        epsilon,
        "<=",
        gaussian_p_value(errors, mu),
        f"{GAUSSIAN_CONFIDENCE:.0%}, {errors.false_positives} of {errors.outside} outside above the threshold, "
        f"{errors.false_negatives} of {errors.inside} inside below",
    )


def noise_lines(observed: Observed) -> Iterator[Line]:
    """Standard deviation of the noise over what the ledger states, in both tables and in every tensor."""
    outside = ~observed.included
    for table, name in enumerate(("first", "second")):
        numbers = np.concatenate([part.innovations[:, table, outside].ravel() for part in observed.parts])
        ratio, p_value = noise_ratio(numbers)
        yield Line("noise", f"{name} canary tensor", ratio, 1.0, "=", p_value, f"{numbers.size:,} numbers")
    blank = observed.blank.innovations
    ratios = {}
    for name, place in observed.tensors.items():
        numbers = blank[:, place]
        if name in observed.padded:
            numbers = numbers[:, numbers.any(axis=0)]
        ratios[name] = noise_ratio(numbers.ravel())
    worst = min(ratios, key=lambda name: ratios[name][1])
    yield Line(
        "noise",
        "tensors of the network",
        ratios[worst][0],
        1.0,
        "=",
        min(1.0, len(ratios) * ratios[worst][1]),
        f"{worst}, the least likely of {len(ratios)}",
    )


def noise_ratio(numbers: Floats) -> tuple[float, float]:
    """Standard deviation of numbers that should be standard normal, and the two-sided p-value of their sum of squares.

    Example:
        >>> ratio, p_value = noise_ratio(np.random.default_rng(0).normal(size=10_000) / 2)
        >>> round(ratio, 2), p_value < 1e-9
        (0.5, True)
    """
    square = float(np.square(numbers).sum())
    curve = stats.chi2(numbers.size)
    return float(np.sqrt(square / numbers.size)), min(1.0, 2 * float(min(curve.cdf(square), curve.sf(square))))


def contribution_lines(observed: Observed) -> Iterator[Line]:
    """What a canary adds to a step that draws it, over the sensitivity on the ledger, and to all the other steps.

    Rows of canaries that are not in the data are drawn too: what is released there is the noise.
    """
    drawn, inside = drawn_canaries(observed), observed.included
    numbers = np.concatenate([responses(part) / part.sigma[:, None] for part in observed.parts])
    weights = np.concatenate([_collected(part) / np.square(part.sigma) for part in observed.parts])
    found, error, freedom = _mean_of_some(numbers[:, inside], drawn[:, inside], weights)
    noise, spread, others = _mean_of_some(numbers[:, ~inside], drawn[:, ~inside], weights)
    error = float(np.hypot(error, spread))
    p_value = float(stats.t.sf(_standardised(found - noise - 1.0, error), min(freedom, others)))
    note = f"standard error {error:.4f}; the clip mechanism states {observed.share:.3f}"
    yield Line("contribution", "a canary over the sensitivity", found - noise, 1.0, "<=", p_value, note)
    idle = ~drawn[:, inside]
    if idle.any():
        sums = np.concatenate([part.sums for part in observed.parts]).sum(axis=1)[:, inside] / np.sqrt(2.0)
        found, error, freedom = _mean_of_some(sums, idle, np.ones(len(sums)))
        p_value = 2.0 * float(stats.t.sf(_standardised(abs(found), error), freedom))
        note = f"standard error {error:.4f}"
        yield Line("contribution", "a canary that is not drawn", found, 0.0, "=", p_value, note)


def drawn_canaries(observed: Observed) -> NDArray[np.bool_]:
    """Whether each step drew the row of each canary, shape (steps, m)."""
    plan = observed.plan
    found = np.zeros((len(observed.drawn), plan.rows), dtype=bool)
    for step, rows in enumerate(observed.drawn):
        found[step, rows] = True
    return found[:, -plan.canaries :]


def _collected(part: Stretch) -> Floats:
    """How much of a draw in each step shows until the end of the stretch, shape (steps,): 1 but for the last bands."""
    shares = np.cumsum(np.square(part.response))
    left = np.arange(len(part.sigma), 0, -1)
    found: Floats = shares[np.minimum(left, len(shares)) - 1]
    return found


def _mean_of_some(numbers: Floats, chosen: NDArray[np.bool_], weights: Floats) -> tuple[float, float, int]:
    """Sum of the chosen numbers over that of the weights of their steps, its standard error, and degrees of freedom.

    Canaries, which are columns, are independent of each other; steps need not be.
    """
    totals = np.where(chosen, numbers, 0.0).sum(axis=0)
    shares = weights @ chosen
    columns, whole = int((shares > 0).sum()), float(shares.sum()) or 1.0
    mean = float(totals.sum()) / whole
    freedom = max(1, columns - 1)
    square = float(np.square(totals - mean * shares).sum()) * columns / freedom
    return mean, float(np.sqrt(square)) / whole, freedom


def _standardised(excess: float, error: float) -> float:
    return excess / error if error > 0 else float(np.sign(excess) * np.inf)


def correlation_lines(observed: Observed) -> Iterator[Line]:
    """Largest correlations of the noise across steps and across tensors, and the cost of the stated correlation."""
    outside = ~observed.included
    noise = np.concatenate([part.innovations[:, :, outside] for part in observed.parts])
    steps = noise.reshape(len(noise), -1)
    yield _correlation_line("across steps", _cosines(steps, steps), steps.shape[1], same=True)
    cosines = _cosines(noise[:, 0], noise[:, 1])
    yield _correlation_line("across tensors", cosines, noise.shape[2], same=False)
    norm = float(np.linalg.norm(observed.parts[0].response))
    note = "of the coefficients that correlate the noise"
    yield Line("correlation", "sensitivity", norm, 1.0, "<=", 0.0 if norm > 1 + 1e-6 else 1.0, note)


def _correlation_line(name: str, cosines: Floats, size: int, *, same: bool) -> Line:
    if same:
        cosines = cosines[np.triu_indices(len(cosines), 1)]
    largest = min(1.0, float(np.abs(cosines).max()))
    p_value = correlation_p_value(largest, size) * cosines.size
    return Line(
        "correlation", name, largest, 0.0, "=", min(1.0, p_value), f"largest of {cosines.size:,}, {size:,} numbers each"
    )


def correlation_p_value(correlation: float, size: int) -> float:
    """Two-sided p-value of the cosine of two independent vectors of ``size`` centred normal numbers.

    Example:
        >>> correlation_p_value(1.0, 100), round(correlation_p_value(0.2, 101), 3)
        (0.0, 0.044)
    """
    if correlation >= 1.0:
        return 0.0
    quantile = correlation * np.sqrt((size - 1) / (1.0 - correlation**2))
    return 2.0 * float(stats.t.sf(quantile, size - 1))


def _cosines(first: Floats, second: Floats) -> Floats:
    def scaled(rows: Floats) -> Floats:
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        divided: Floats = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
        return divided

    found: Floats = scaled(first) @ scaled(second).T
    return found
