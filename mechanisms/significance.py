"""Statistical tests of samples against their stated distribution, with a negligible probability of a false alarm.

A trial makes a few hundred thousand comparisons. Each rejects a correct mechanism with a probability of at most
``ALARM``, so a whole trial rejects one with a probability below 1e-9.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Numbers = NDArray[np.number] | float
Flags = NDArray[np.bool_]

#: Probability that one comparison rejects a correct mechanism.
ALARM = 1e-15
#: Limit for a normal number, in standard deviations: two-sided 2e-16, with a margin for nearly normal sums.
SIGMAS = 8.2
#: Smallest vector length for which a cosine of 1 lies beyond ``SIGMAS``.
_FEWEST = 80


def unlikely_spread(squares: Numbers, count: int) -> Flags:
    """Whether a sum of squares is implausibly small or large for ``count`` standard normal numbers.

    Args:
        squares: Sums of squares, any shape.
        count: Number of squares in each sum.

    Example:
        >>> unlikely_spread(np.array([900.0, 1000.0, 2000.0]), 1000).tolist()
        [False, False, True]
    """
    from scipy.special import gammainc, gammaincc

    half = np.asarray(squares, dtype=np.float64) / 2
    return np.asarray(np.minimum(gammainc(count / 2, half), gammaincc(count / 2, half)) < ALARM / 2)


def unlikely_share(hits: Numbers, trials: Numbers, share: Numbers) -> Flags:
    """Whether ``hits`` is implausibly small or large for ``trials`` independent events of mean probability ``share``.

    The test uses Chernoff's bound, which also holds for events of unequal probabilities (Hoeffding 1956).

    Args:
        hits: Number of events that happened, at least 0, any shape.
        trials: Number of events that could have happened; if 0, nothing is implausible.
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
    """Whether two vectors are implausibly parallel or antiparallel for independent centred numbers.

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
    """Whether outcomes on two data sets are implausibly far apart for a Gaussian mechanism of ``mu``.

    For any set of outcomes, its probabilities ``p`` and ``q`` on the two data sets satisfy
    ``|Phi^-1(p) - Phi^-1(q)| <= mu`` (Dong, Roth and Su 2022). The counts are compared with the nearest such pair, by
    Chernoff's bound over all counts.

    Args:
        above: Number of outcomes in the set, among ``trials`` independent ones on the first data set.
        others_above: Number of outcomes in the set, among ``trials`` independent ones on the second data set.
        trials: Number of outcomes on each data set.
        mu: At least 0.

    Example:
        >>> unlikely_separation(100, 0, 100, mu=1.0), unlikely_separation(70, 30, 100, mu=1.0)
        (True, False)
    """
    from scipy.special import ndtr, ndtri, rel_entr

    low, high = sorted((above / trials, others_above / trials))
    if low == high or ndtri(high) - ndtri(low) <= mu:
        return False
    quantiles = np.linspace(-9.0 - mu, 9.0, 2000)
    first, second = ndtr(quantiles), ndtr(quantiles + mu)
    exponents = sum(
        rel_entr(seen, stated) + rel_entr(1.0 - seen, 1.0 - stated) for seen, stated in ((low, first), (high, second))
    )
    return bool(trials * np.min(exponents) - 2.0 * math.log(trials + 1.0) > -math.log(ALARM))


def repeated_at(values: Floats) -> int | None:
    """The distance at which a vector of centred numbers of variance 1 repeats or mirrors itself, or None.

    All circular distances are tested. This finds numbers that occur twice, in the same or in reverse order, a stream
    that is replayed with an offset, and neighbours that depend on each other.

    Args:
        values: Shape (n,), at least a thousand numbers.

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
