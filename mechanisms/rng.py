"""Randomness of the proof: an AES-256-CTR key stream, keyed by the operating system unless a seed is given.

Noise must be unpredictable to whoever sees the model, so it does not come from the training seed or a Mersenne Twister.
Normal numbers are made from 53-bit uniform numbers in float64 (Box-Muller) and cast last, so that their tail reaches
beyond 8 standard deviations.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import numpy as np

from monitors import _checks

if TYPE_CHECKING:
    import torch
    from cryptography.hazmat.primitives.ciphers import CipherContext

_KEY_BYTES = 32
_NONCE_BYTES = 16
_WORD_BYTES = 8
_MANTISSA_BITS = 53
#: Numbers made at once: few enough to stay in the processor's cache.
_BLOCK = 1 << 16


class SecureGenerator:
    """Random numbers from AES-256 in counter mode.

    Guarantees: with ``seed=0`` the key is fresh entropy of the operating system; it is never stored, shown or restored.
    After a fork the child draws under a key of its own, so two processes never share a stream.

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
        _checks.non_negative_int(seed=seed or 0)
        self._seed = int(seed or 0)
        self._purpose = purpose
        self._stream = self._new_stream(forked=False)

    @property
    def reproducible(self) -> bool:
        """Whether a user's seed fixes the stream."""
        return self._seed != 0

    def words(self, count: int) -> np.ndarray:
        """``count`` uniform 64-bit words as a fresh ``uint64`` array."""
        if os.getpid() != self._process:
            self._stream = self._new_stream(forked=True)
        stream = self._stream.update(bytes(count * _WORD_BYTES))
        return np.frombuffer(bytearray(stream), dtype=np.uint64)

    def bernoulli_rows(self, count: int, rate: float) -> np.ndarray:
        """Indices of the successes among ``count`` independent coins of probability ``rate``, ``int64``, ascending."""
        _checks.sampling_rate(rate=rate)
        if rate == 1.0:
            return np.arange(count)
        # The threshold is rounded down: a row is never drawn with more than the accounted probability.
        return np.flatnonzero(self.words(count) < np.uint64(int(rate * 2.0**64)))

    def integers(self, high: int, count: int) -> np.ndarray:
        """``count`` uniform integers in [0, high), ``int64``."""
        _checks.positive_int(high=high)
        uniform = (self.words(count) >> np.uint64(64 - _MANTISSA_BITS)) * 2.0**-_MANTISSA_BITS
        return np.asarray(uniform * high, dtype=np.int64)

    def permutation(self, count: int) -> np.ndarray:
        """A uniform permutation of 0 .. count - 1, ``int64``."""
        return np.argsort(self.words(count), kind="stable")

    def normal(self, count: int, dtype: torch.dtype | None = None, scale: float = 1.0) -> torch.Tensor:
        """``count`` independent centred normal numbers, shape (count,), on the CPU.

        Args:
            count: How many, at least 0.
            dtype: Type of the result (default float64); the numbers are made and scaled in float64 and cast last.
            scale: Standard deviation.
        """
        import torch

        normal = torch.empty(count, dtype=dtype or torch.float64)
        for block in normal.split(_BLOCK):
            self._fill(block, scale)
        return normal

    def _fill(self, block: torch.Tensor, scale: float) -> None:
        import torch

        pairs = (len(block) + 1) // 2
        words = self.words(2 * pairs)
        np.right_shift(words, np.uint64(64 - _MANTISSA_BITS), out=words)
        uniform = torch.from_numpy(words.view(np.int64)).to(torch.float64).mul_(2.0**-_MANTISSA_BITS)
        # 1 - u lies in (0, 1], so that the logarithm is finite.
        radius = torch.rsub(uniform[:pairs], 1.0).log_().mul_(-2.0).sqrt_().mul_(scale)
        angle = uniform[pairs:].mul_(2.0 * torch.pi)
        block[:pairs].copy_(torch.cos(angle).mul_(radius))
        block[pairs:].copy_(radius.mul_(angle.sin_())[: len(block) - pairs])

    def scalar_normal(self) -> float:
        """One standard normal number."""
        return float(self.normal(1)[0])

    def _new_stream(self, *, forked: bool) -> CipherContext:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        self._process = os.getpid()
        if self._seed == 0:
            material = os.urandom(_KEY_BYTES + _NONCE_BYTES)
        else:
            process = self._process if forked else ""
            material = hashlib.sha512(f"dpmodel:{self._seed}:{self._purpose}:{process}".encode()).digest()
        key, nonce = material[:_KEY_BYTES], material[_KEY_BYTES : _KEY_BYTES + _NONCE_BYTES]
        return Cipher(algorithms.AES(key), modes.CTR(nonce)).encryptor()
