"""Randomness of the proof: an AES-256-CTR key stream, keyed by the operating system unless a seed is given.

Noise must be unpredictable to whoever sees the model, so it does not come from the training seed or a Mersenne Twister.
Normal numbers in float64 are made from 53-bit uniform numbers, those in float32 as ``mechanisms.box_muller`` says; the
tail of both reaches beyond 8 standard deviations.
"""

from __future__ import annotations

import hashlib
import math
import os
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mechanisms.box_muller import CIPHER_BYTES, add_normal
from monitors import checks

if TYPE_CHECKING:
    import torch
    from cryptography.hazmat.primitives.ciphers import CipherContext

_KEY_BYTES = 32
_WORD_BYTES = 8
_MANTISSA_BITS = 53
#: Numbers in float64 made at once: few enough to stay in the processor's cache.
_BLOCK = 1 << 16
#: Squares of scales outside would leave the normal range of float32 in the transform.
_FLOAT32_SCALES = (1e-10, 1e15)


class SecureGenerator:
    """Random numbers from AES-256 in counter mode.

    Guarantees: with ``seed=0`` the key is fresh entropy of the operating system; it is never stored, shown or restored.
    After a fork the child draws under a key of its own, so two processes never share a stream. Nor does a copy, or what
    a pickle is read back to: a secret one gets a fresh key; one that a seed fixes goes on from the same place.

    Args:
        seed: 0 (default) for a secret stream. Any other whole number makes the stream reproducible: for tests only, the
            privacy claim does not hold against someone who knows it.
        purpose: Separates the streams of one seed (noise, sampling, counts).

    Example:
        >>> SecureGenerator(seed=7).integers(10, 5).tolist() == SecureGenerator(seed=7).integers(10, 5).tolist()
        True
        >>> SecureGenerator().reproducible
        False
    """

    def __init__(self, seed: int | None = 0, purpose: str = "") -> None:
        checks.non_negative_int(seed=seed or 0)
        self._seed = int(seed or 0)
        self._purpose = purpose
        self._stream = self._new_stream(forked=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (self._seed, self._purpose, self.position)

    @property
    def reproducible(self) -> bool:
        """Whether a user's seed fixes the stream."""
        return self._seed != 0

    @property
    def position(self) -> int | None:
        """Bytes drawn so far from a stream that a seed fixes; None for a secret stream, which cannot be repeated."""
        return self._position if self.reproducible else None

    def seek(self, position: int) -> None:
        """Go to the place after the first ``position`` bytes of a stream that a seed fixes.

        Raises:
            ValueError: The stream is secret, or ``position`` is no whole number of at least 0.
        """
        checks.non_negative_int(position=position)
        if not self.reproducible:
            raise ValueError(f"a secret stream is never repeated, so it has no position {position} to go to")
        self._stream = self._new_stream(forked=False, counter=position // CIPHER_BYTES)
        self._stream.update(bytes(position % CIPHER_BYTES))
        self._position = position

    def words(self, count: int) -> np.ndarray:
        """``count`` uniform 64-bit words as a fresh ``uint64`` array."""
        return np.frombuffer(bytearray(self._bytes(count * _WORD_BYTES)), dtype=np.uint64)

    def bernoulli_rows(self, count: int, rate: float) -> np.ndarray:
        """Indices of the successes among ``count`` independent coins of probability ``rate``, ``int64``, ascending."""
        checks.sampling_rate(rate=rate)
        if rate == 1.0:
            return np.arange(count)
        # The threshold is rounded down: a row is never drawn with more than the accounted probability.
        return np.flatnonzero(self.words(count) < np.uint64(int(rate * 2.0**64)))

    def integers(self, high: int, count: int) -> np.ndarray:
        """``count`` uniform integers in [0, high), ``int64``."""
        checks.positive_int(high=high)
        uniform = (self.words(count) >> np.uint64(64 - _MANTISSA_BITS)) * 2.0**-_MANTISSA_BITS
        return np.asarray(uniform * high, dtype=np.int64)

    def permutation(self, count: int) -> np.ndarray:
        """A uniform permutation of 0 .. count - 1, ``int64``."""
        return np.argsort(self.words(count), kind="stable")

    def normal(self, count: int, dtype: torch.dtype | None = None, scale: float = 1.0) -> torch.Tensor:
        """``count`` independent centred normal numbers, shape (count,), on the CPU.

        Args:
            count: How many, at least 0.
            dtype: Type of the result (default float64). Types other than float32 are made in float64 and cast last.
            scale: Standard deviation.
        """
        import torch

        if dtype == torch.float32:
            # Zeros from NumPy are not written before the noise is; torch would start its threads to write them.
            return self.add_normal_(torch.from_numpy(np.zeros(count, dtype=np.float32)), scale)
        return self.add_normal_(torch.zeros(count, dtype=dtype or torch.float64, device="cpu"), scale)

    def add_normal_(self, target: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        """Add independent centred normal numbers to ``target`` in place, without a second array of its size.

        Numbers in float32 come from a stream under a key of their own, drawn for this call and forgotten after it; they
        are made on as many cores as torch may use, and do not depend on how many.

        Args:
            target: Contiguous, shape (n,), on the CPU.
            scale: Standard deviation.

        Returns:
            ``target``.
        """
        import torch

        low, high = _FLOAT32_SCALES
        if target.dtype == torch.float32 and low < scale < high:
            key = self._bytes(_KEY_BYTES + CIPHER_BYTES)
            add_normal(target.detach().numpy(), scale, partial(_open_stream, key), torch.get_num_threads())
            return target
        for block in target.split(_BLOCK):
            self._add_float64(block, scale)
        return target

    def _add_float64(self, block: torch.Tensor, scale: float) -> None:
        import torch

        pairs = (len(block) + 1) // 2
        words = self.words(2 * pairs)
        np.right_shift(words, np.uint64(64 - _MANTISSA_BITS), out=words)
        uniform = torch.from_numpy(words.view(np.int64)).to(torch.float64).mul_(2.0**-_MANTISSA_BITS)
        # 1 - u lies in (0, 1], so that the logarithm is finite.
        radius = torch.rsub(uniform[:pairs], 1.0).log_().mul_(-2.0).sqrt_().mul_(scale)
        angle = uniform[pairs:].mul_(2.0 * torch.pi)
        block[:pairs].add_(torch.cos(angle).mul_(radius))
        block[pairs:].add_(radius.mul_(angle.sin_())[: len(block) - pairs])

    def scalar_normal(self) -> float:
        """One standard normal number: that of ``normal(1)``, without the start of a dozen tensor operations."""
        uniform, turn = ((int(word) >> (64 - _MANTISSA_BITS)) * 2.0**-_MANTISSA_BITS for word in self.words(2))
        return math.sqrt(-2.0 * math.log(1.0 - uniform)) * math.cos(2.0 * math.pi * turn)

    def _bytes(self, count: int) -> bytes:
        if os.getpid() != self._process:
            self._stream = self._new_stream(forked=True)
        self._position += count
        return self._stream.update(bytes(count))

    def _new_stream(self, *, forked: bool, counter: int = 0) -> CipherContext:
        self._process, self._position = os.getpid(), 0
        if self._seed == 0:
            return _open_stream(os.urandom(_KEY_BYTES + CIPHER_BYTES))
        process = self._process if forked else ""
        material = hashlib.sha512(f"dpmodel:{self._seed}:{self._purpose}:{process}".encode()).digest()
        return _open_stream(material, counter)


def _rebuilt(seed: int, purpose: str, position: int | None) -> SecureGenerator:
    generator = SecureGenerator(seed, purpose)
    if position is not None:
        generator.seek(position)
    return generator


def _open_stream(material: bytes, counter: int = 0) -> CipherContext:
    """The key stream of a key and an initial counter, in one, from ``counter`` blocks after its beginning."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    key, start = material[:_KEY_BYTES], material[_KEY_BYTES : _KEY_BYTES + CIPHER_BYTES]
    shifted = (int.from_bytes(start, "big") + counter) % 2 ** (8 * CIPHER_BYTES)
    return Cipher(algorithms.AES(key), modes.CTR(shifted.to_bytes(CIPHER_BYTES, "big"))).encryptor()
