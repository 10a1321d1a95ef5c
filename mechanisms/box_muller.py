"""Normal numbers in float32 from random bits: Box and Muller's transform, block by block, on several cores.

A pair of independent normal numbers is ``r cos(t), r sin(t)`` with ``r = s sqrt(-2 ln u)``: ``u`` is uniform from 64
random bits, the angle ``t`` from 32 others.

What is discrete, and why it does not matter for a stated standard deviation:

- ``u = (k + 1/2) / 2**63`` with ``k`` uniform in 0 .. 2**63 - 1, logarithm in float64. Small ``u`` keep all their bits,
  so the tail has the right probabilities up to ``s sqrt(2 ln 2**64) = 9.4 s``, where it ends (a normal number is
  beyond that with probability 5e-21). A ``u`` near 1 is rounded to 2**-53, which moves a radius near 0 by 2e-8 s.
- ``t`` is one of 2**32 angles, rounded to float32: within 2e-7 of the exact one. The mean is off by less than 1e-7 s.
- Square root, sine, cosine and product are rounded to float32, within 1e-6 of the exact value in all. ``s`` is taken
  larger by 2**-21, so that no rounding leaves a standard deviation below the stated one.

What is not covered: sums of a gradient and noise are numbers of floating point, and which of their last bits can occur
depends on the gradient. Mironov 2012, "On Significance of the Least Significant Bits for Differential Privacy", and
Jin et al. 2022, "Are We There Yet? Timing and Floating-Point Attacks on Differential Privacy Systems", read secrets
from such bits in releases of full precision. No floating-point noise, of float64 neither, withstands that; the privacy
claim is that of exact arithmetic.

References:
    Box and Muller 1958, "A Note on the Generation of Random Normal Deviates".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers import CipherContext

#: Opens the key stream at a counter, in blocks of the cipher.
OpenStream = Callable[[int], "CipherContext"]
Float32Array = npt.NDArray[np.float32]

CIPHER_BYTES = 16
_WORD_BYTES, _TURN_BYTES = 8, 4
_PAIR_BYTES = _WORD_BYTES + _TURN_BYTES
#: Pairs made at once: few enough for the cache, enough that threads seldom meet between two calls (half as many take a
#: sixth longer on two cores).
_PAIRS = 1 << 16
#: Numbers under one opening of the key stream, and what one thread takes at a time.
_STRETCH = 1 << 18
#: Fewest numbers for each thread: on a busy machine the wait for one takes longer than a smaller share.
_THREAD = 1 << 20
#: Threads meet at the interpreter's lock between their calls: more of them would wait for each other.
_MAX_THREADS = 4
_ZEROS = memoryview(bytes(_PAIRS * _PAIR_BYTES))
_LIFT = 1.0 + 2.0**-21


class BoxMuller:
    """The transform with its scratch; one thread uses it at a time.

    Args:
        pairs: Most pairs of one call.

    Example:
        >>> cosines, sines = BoxMuller(1)(np.array([2**40]), np.array([2**30], dtype=np.int32))
        >>> abs(float(cosines[0])) < 1e-6, round(float(sines[0]), 4)
        (True, 5.6467)
    """

    def __init__(self, pairs: int) -> None:
        self._uniform, self._radius = np.empty(pairs), np.empty(pairs, dtype=np.float32)
        # They take the memory of the uniform numbers, done with by then: what is smaller stays in the cache.
        self._angle, self._cosine = self._uniform.view(np.float32).reshape(2, pairs)

    def __call__(
        self, words: npt.NDArray[np.int64], turns: npt.NDArray[np.int32], scale: float = 1.0
    ) -> tuple[Float32Array, Float32Array]:
        """Two arrays of normal numbers, valid until the next call.

        Args:
            words: Uniform 64-bit words as ``int64``, shape (n,): ``u = |word + 1/2| / 2**63``.
            turns: Uniform 32-bit words as ``int32``, shape (n,): ``t = turn * pi / 2**31``.
            scale: Standard deviation; its square lies within the normal range of float32.
        """
        size = len(words)
        uniform, radius = self._uniform[:size], self._radius[:size]
        angle, cosine = self._angle[:size], self._cosine[:size]
        # The half makes the words symmetric about 0 and keeps the logarithm finite.
        np.add(words, 0.5, out=uniform)
        np.multiply(uniform, 2.0**-63, out=uniform)
        np.abs(uniform, out=uniform)
        np.log(uniform, out=uniform)
        np.copyto(radius, uniform, casting="same_kind")
        np.multiply(radius, np.float32(-2.0 * (scale * _LIFT) ** 2), out=radius)
        np.sqrt(radius, out=radius)
        np.copyto(angle, turns, casting="same_kind")
        np.multiply(angle, np.float32(math.pi * 2.0**-31), out=angle)
        np.cos(angle, out=cosine)
        np.multiply(cosine, radius, out=cosine)
        np.sin(angle, out=angle)
        np.multiply(angle, radius, out=angle)
        return cosine, angle


def add_normal(target: Float32Array, scale: float, open_stream: OpenStream, threads: int = 1) -> None:
    """Add independent normal numbers of standard deviation ``scale`` to ``target`` in place.

    Guarantees: each part of ``target`` has a range of the stream's counters of its own, fixed by its place, so the
    numbers do not depend on ``threads``. Threads end before the return: a process forked later inherits none.

    Args:
        target: Contiguous, shape (n,).
        scale: Standard deviation; its square lies within the normal range of float32.
        open_stream: A stream that nothing else draws from.
        threads: Most threads to use, the caller's included.
    """
    stretches: SimpleQueue[int] = SimpleQueue()
    for begin in range(0, len(target), _STRETCH):
        stretches.put(begin)
    helpers = min(threads, _MAX_THREADS, len(target) // _THREAD) - 1
    if helpers < 1:
        _work(stretches, target, scale, open_stream)
        return
    with ThreadPoolExecutor(helpers) as pool:
        others = [pool.submit(_work, stretches, target, scale, open_stream) for _ in range(helpers)]
        _work(stretches, target, scale, open_stream)
        for other in others:
            other.result()


def _work(stretches: SimpleQueue[int], target: Float32Array, scale: float, open_stream: OpenStream) -> None:
    pairs = min(_PAIRS, (len(target) + 1) // 2)
    transform, bits = BoxMuller(pairs), bytearray(pairs * _PAIR_BYTES + CIPHER_BYTES)
    while True:
        try:
            begin = stretches.get_nowait()
        except Empty:
            return
        stream = open_stream(begin // 2 * _PAIR_BYTES // CIPHER_BYTES)
        stretch = target[begin : begin + _STRETCH]
        for first in range(0, len(stretch), 2 * _PAIRS):
            _add_block(stretch[first : first + 2 * _PAIRS], scale, stream, transform, bits)


def _add_block(block: Float32Array, scale: float, stream: CipherContext, transform: BoxMuller, bits: bytearray) -> None:
    pairs = (len(block) + 1) // 2
    stream.update_into(_ZEROS[: pairs * _PAIR_BYTES], bits)
    words = np.frombuffer(bits, np.int64, pairs)
    turns = np.frombuffer(bits, np.int32, pairs, offset=pairs * _WORD_BYTES)
    cosines, sines = transform(words, turns, scale)
    front, back = block[:pairs], block[pairs:]
    np.add(front, cosines, out=front)
    np.add(back, sines[: len(back)], out=back)
