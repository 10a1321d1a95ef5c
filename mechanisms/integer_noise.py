"""Normal noise in whole numbers, random down to the last bit however large it is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mechanisms.rng import SecureGenerator

#: Bits of the standard deviation that are drawn as a normal number. A float64 holds 53: a draw of a hundred standard
#: deviations is still a whole number, and all of its bits are random.
_BITS = 45

#: Most further bits for which a draw of sixteen standard deviations fits 64 bits, and the bits of one random word.
_MOST_FURTHER, _WORD = 13, 64


def normal_integers(generator: SecureGenerator, count: int, deviation: float) -> NDArray[Any]:
    """Normal numbers of this standard deviation, rounded to whole numbers.

    A float64 beyond 2**53 is an even number, so noise of that size would leave the last bit of what it is added to as
    it is. Large noise is therefore a coarse normal number, in units of a power of two, and uniform bits below. The
    density differs from the normal one by about 2**-45 of itself.

    Args:
        generator: Source of randomness.
        count: Number of draws.
        deviation: Standard deviation, at least 0.

    Returns:
        Shape (count,): int64, or Python integers (dtype object) if they may not fit.

    Example:
        >>> drawn = normal_integers(SecureGenerator(seed=1), 1000, 2.0**60)
        >>> 0.4 < sum(int(value) % 2 for value in drawn) / 1000 < 0.6
        True
    """
    further = max(0, math.frexp(deviation)[1] - _BITS)
    drawn = generator.normal(count, scale=math.ldexp(deviation, -further)).numpy()
    coarse: NDArray[Any] = np.rint(drawn).astype(np.int64)
    if not further:
        return coarse
    if further <= _MOST_FURTHER:
        below = (generator.words(count) >> np.uint64(_WORD - further)).astype(np.int64)
        found: NDArray[Any] = (coarse << further) + below - (1 << (further - 1))
        return found
    words = -(-further // _WORD)
    rows = generator.words(count * words).reshape(count, words).tolist()
    bits = [sum(word << (_WORD * place) for place, word in enumerate(row)) % (1 << further) for row in rows]
    whole = [(value << further) + low - (1 << (further - 1)) for value, low in zip(coarse.tolist(), bits, strict=True)]
    return np.array(whole, dtype=object)
