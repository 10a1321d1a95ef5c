"""Tests of drawn numbers against what is stated of them, at an error probability that nobody will ever see.

A trial makes some hundred thousand comparisons. Each one rejects a correct mechanism with a probability of at most
``ALARM``, so that a whole trial does so with less than 1e-9.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Numbers = NDArray[np.number] | float
Flags = NDArray[np.bool_]

#: Probability that one comparison rejects what is correct.
ALARM = 1e-15
#: The same for a number that is normal, in standard deviations: two-sided 2e-16, with room for sums that are nearly so.
SIGMAS = 8.2
#: Fewest numbers for which a cosine of 1 lies beyond ``SIGMAS``.
_FEWEST = 80


def unlikely_spread(squares: Numbers, count: int) -> Flags:
    """Whether a sum of squares of ``count`` standard normal numbers is never that small or that large.

    Args:
        squares: Sums of squares, any shape.
        count: Squares in each sum.

    Example:
        >>> unlikely_spread(np.array([900.0, 1000.0, 2000.0]), 1000).tolist()
        [False, False, True]
    """
    from scipy.special import gammainc, gammaincc

    half = np.asarray(squares, dtype=np.float64) / 2
    return np.asarray(np.minimum(gammainc(count / 2, half), gammaincc(count / 2, half)) < ALARM / 2)


def unlikely_share(hits: Numbers, trials: Numbers, share: Numbers) -> Flags:
    """Whether ``hits`` of ``trials`` independent events of mean probability ``share`` are never that few or that many.

    The bound is Chernoff's, which holds for events of unequal probabilities too (Hoeffding 1956).

    Args:
        hits: Events that happened, at least 0, any shape.
        trials: Events that could have happened; where 0, nothing is unlikely.
        share: Mean probability, in [0, 1].

    Example:
        >>> unlikely_share(np.array([40, 90]), 100, 0.5).tolist()
        [False, True]
    """
    from scipy.special import rel_entr

    number = np.maximum(np.asarray(trials, dtype=np.float64), 1.0)
    seen, stated = np.asarray(hits, dtype=np.float64) / number, np.asarray(share, dtype=np.float64)
    exponent = number * (rel_entr(seen, stated) + rel_entr(np.maximum(1.0 - seen, 0.0), 1.0 - stated))
    return np.asarray((exponent > -math.log(ALARM / 2)) & (np.asarray(trials) > 0))


def alike(first: Floats, second: Floats) -> Flags:
    """Whether two vectors of independent centred numbers never point so much the same, or the opposite, way.

    Args:
        first: Shape (..., n).
        second: Shape (..., n).

    Example:
        >>> numbers = np.random.default_rng(0).normal(size=(2, 200))
        >>> bool(alike(numbers[0], numbers[1])), bool(alike(numbers[0], -numbers[0]))
        (False, True)
    """
    count = first.shape[-1]
    if count < _FEWEST:
        return np.asarray((first == second).all(axis=-1) & first.any(axis=-1))
    products = (first * second).sum(axis=-1)
    sizes = np.sqrt(np.square(first).sum(axis=-1) * np.square(second).sum(axis=-1))
    return np.asarray(np.abs(products) * math.sqrt(count) > SIGMAS * sizes)


def unlikely_separation(above: int, others_above: int, trials: int, mu: float) -> bool:
    """Whether outcomes on two data sets lie further apart than a Gaussian mechanism of ``mu`` ever lets them.

    For any set of outcomes, the probabilities ``p`` and ``q`` on the two satisfy ``|Phi^-1(p) - Phi^-1(q)| <= mu``
    (Dong, Roth and Su 2022). The nearest such pair is what the counts are compared with, by Chernoff's bound over all
    counts.

    Args:
        above: Outcomes in the set among ``trials`` on the one, drawn independently.
        others_above: The same on the other.
        trials: Outcomes on each.
        mu: At least 0.

    Example:
        >>> unlikely_separation(100, 0, 100, mu=1.0), unlikely_separation(70, 30, 100, mu=1.0)
        (True, False)
    """
    from scipy.special import ndtr, ndtri, rel_entr

    low, high = sorted((above / trials, others_above / trials))
    if low == high or ndtri(high) - ndtri(low) <= mu:
        return False
    places = np.linspace(-9.0 - mu, 9.0, 2000)
    first, second = ndtr(places), ndtr(places + mu)
    exponents = sum(
        rel_entr(seen, stated) + rel_entr(1.0 - seen, 1.0 - stated) for seen, stated in ((low, first), (high, second))
    )
    return bool(trials * np.min(exponents) - 2.0 * math.log(trials + 1.0) > -math.log(ALARM))


def repeated_at(values: Floats) -> int | None:
    """The distance at which a vector of independent centred numbers of variance 1 repeats or mirrors itself, if any.

    All distances are looked at (circularly): a number that stands in two places, in the same or the opposite order, a
    stream that is replayed with an offset, or neighbours that depend on each other.

    Args:
        values: Shape (n,), a thousand numbers or more.

    Example:
        >>> numbers = np.random.default_rng(0).normal(size=2000)
        >>> repeated_at(numbers)
        >>> repeated_at(np.concatenate([numbers[:1000], numbers[:1000]]))
        1000
    """
    from scipy.fft import irfft, rfft

    count = len(values)
    spectrum = rfft(np.asarray(values, dtype=np.float32))
    power = np.square(spectrum.real) + np.square(spectrum.imag)
    shifted = np.abs(irfft(power, count))[: count // 2 + 1]
    shifted[0] = 0.0
    if count % 2 == 0:
        shifted[-1] /= math.sqrt(2.0)  # each pair is counted twice
    mirrored = np.abs(irfft(np.square(spectrum), count)) / math.sqrt(2.0)
    limit = SIGMAS * math.sqrt(count)
    for found in (shifted, mirrored):
        if found.max() > limit:
            return int(found.argmax())
    return None
