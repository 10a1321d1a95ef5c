"""Normal numbers in float32 from random bits, by the Box-Muller transform, block by block, on several cores.

A pair of independent normal numbers is ``r cos(t), r sin(t)`` with ``r = s sqrt(-2 ln u)``, where ``u`` is uniform,
made from 64 random bits, and the angle ``t`` is uniform, made from 32 other bits.

These discretisations do not affect the stated standard deviation:

- ``u = (k + 1/2) / 2**63`` with ``k`` uniform in 0 .. 2**63 - 1, and its logarithm is in float64. Small ``u`` keep all
  their bits, so the tail has the correct probabilities up to its end at ``s sqrt(2 ln 2**64) = 9.4 s`` (a normal number
  is beyond it with probability 5e-21). A ``u`` near 1 is rounded to 2**-53, which moves a radius near 0 by 2e-8 s.
- ``t`` is one of 2**32 angles, rounded to float32, within 2e-7 of the exact one. The mean is off by less than 1e-7 s.
- Square root, sine, cosine and product are rounded to float32, within 1e-6 of the exact value in total. ``s`` is
  increased by 2**-21, so that rounding never leaves a standard deviation below the stated one.

Not covered: the sum of a gradient and noise is a floating-point number, and which last bits it can have depends on the
gradient. Mironov 2012, "On Significance of the Least Significant Bits for Differential Privacy", and Jin et al. 2022,
"Are We There Yet? Timing and Floating-Point Attacks on Differential Privacy Systems", read secrets from such bits in
releases of full precision. No floating-point noise withstands these attacks, not even in float64; the privacy claim is
that of exact arithmetic.

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

#: Opens the key stream at a counter, given in cipher blocks.
OpenStream = Callable[[int], "CipherContext"]
Float32Array = npt.NDArray[np.float32]

CIPHER_BYTES = 16
_WORD_BYTES, _TURN_BYTES = 8, 4
_PAIR_BYTES = _WORD_BYTES + _TURN_BYTES
#: Pairs made at once: few enough for the cache, but enough that threads rarely contend between two calls (half as many
#: take a sixth longer on two cores).
_PAIRS = 1 << 16
#: Numbers made after each opening of the key stream; a thread takes this many at a time.
_STRETCH = 1 << 18
#: Fewest numbers per thread: on a busy machine, waiting for a thread takes longer than making fewer numbers.
_THREAD = 1 << 20
#: Threads contend for the interpreter's lock between their calls, so more threads would wait for each other.
_MAX_THREADS = 4
_ZEROS = memoryview(bytes(_PAIRS * _PAIR_BYTES))
_LIFT = 1.0 + 2.0**-21


class BoxMuller:
    """The transform with its scratch memory; only one thread may use it at a time.

    Args:
        pairs: Largest number of pairs in one call.

    Example:
        >>> cosines, sines = BoxMuller(1)(np.array([2**40]), np.array([2**30], dtype=np.int32))
        >>> abs(float(cosines[0])) < 1e-6, round(float(sines[0]), 4)
        (True, 5.6467)
    """

    def __init__(self, pairs: int) -> None:
        self._uniform, self._radius = np.empty(pairs), np.empty(pairs, dtype=np.float32)
        # Reuse the memory of the uniform numbers, which are no longer needed then, so that less cache is used.
        self._angle, self._cosine = self._uniform.view(np.float32).reshape(2, pairs)

    def __call__(
        self, words: npt.NDArray[np.int64], turns: npt.NDArray[np.int32], scale: float = 1.0
    ) -> tuple[Float32Array, Float32Array]:
        """Two arrays of normal numbers, valid until the next call.

        Args:
            words: Uniform 64-bit words as ``int64``, shape (n,): ``u = |word + 1/2| / 2**63``.
            turns: Uniform 32-bit words as ``int32``, shape (n,): ``t = turn * pi / 2**31``.
            scale: Standard deviation; its square must be a normal float32 number.
        """
        size = len(words)
        uniform, radius = self._uniform[:size], self._radius[:size]
        angle, cosine = self._angle[:size], self._cosine[:size]
        # Adding a half makes the words symmetric about 0 and keeps the logarithm finite.
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

    Guarantees: each part of ``target`` uses a separate range of stream counters, determined by its offset, so the
    numbers do not depend on ``threads``. All threads end before the return, so a process forked later inherits none.

    Args:
        target: Contiguous, shape (n,).
        scale: Standard deviation; its square must be a normal float32 number.
        open_stream: Opens a stream from which nothing else draws.
        threads: Largest number of threads, including the caller's.
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
