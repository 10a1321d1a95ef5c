"""Secure randomness: key streams of AES-256-CTR and, on a GPU, ChaCha20, with keys from the operating system.

Noise must be unpredictable to anyone who sees the model, so it does not come from the training seed or a Mersenne
Twister. Normal numbers in float64 are made from 53-bit uniform numbers, those in float32 as described in
``mechanisms.box_muller``; the tails of both reach beyond 8 standard deviations. Numbers for a GPU are made on that GPU
(see ``mechanisms.chacha``).
"""

from __future__ import annotations

import hashlib
import math
import os
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mechanisms.box_muller import CIPHER_BYTES, add_normal
from mechanisms.fork import process_identity
from monitors import checks

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from cryptography.hazmat.primitives.ciphers import CipherContext

    from mechanisms.chacha.stream import DeviceStream

_KEY_BYTES = 32
_WORD_BYTES = 8
_MANTISSA_BITS = 53
#: Numbers in float64 made at once: few enough to stay in the processor's cache.
_BLOCK = 1 << 16
#: Outside of this range, the square of the scale would not be a normal float32 number in the transform.
_FLOAT32_SCALES = (1e-10, 1e15)
#: Bits per digit of a position; the digits are the bytes drawn on the CPU, then the blocks drawn on each GPU.
_POSITION_BITS = 64


class SecureGenerator:
    """Random numbers from AES-256 in counter mode and, for tensors on a CUDA device, from ChaCha20 on that device.

    Guarantees: with ``seed=0``, the key is fresh entropy from the operating system; it is never stored, shown or
    restored. After a fork, the child process uses a new key, whatever its process ID, so two processes never share a
    stream. A copied or unpickled secret generator also gets a fresh key; a seeded one continues from the same position.
    Each device has a separate key. Without Triton, torch operations make the same numbers.

    A CUDA graph may capture ``add_normal_`` and ``bernoulli_mask``; each replay draws fresh numbers. Draw once with the
    same shapes before the capture.

    Args:
        seed: 0 for a secret stream. Any other integer makes it reproducible and voids the guarantee (tests only).
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
        self._on_devices: dict[torch.device, DeviceStream] = {}
        self._device_blocks: dict[int, int] = {}
        self._stream = self._new_stream(forked=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (self._seed, self._purpose, self.position)

    @property
    def reproducible(self) -> bool:
        """Whether a user's seed determines the stream."""
        return self._seed != 0

    @property
    def position(self) -> int | None:
        """Position in a reproducible stream; None for a secret stream, which cannot be repeated.

        It is the number of bytes drawn on the CPU, plus ``2**(64 * (i + 1))`` for each block of 64 bytes drawn on CUDA
        device ``i``.
        """
        if not self.reproducible:
            return None
        drawn = {_number(device): stream.blocks for device, stream in self._on_devices.items()}
        blocks = {**self._device_blocks, **drawn}
        return self._position + sum(count << (_POSITION_BITS * (number + 1)) for number, count in blocks.items())

    def seek(self, position: int) -> None:
        """Move a reproducible stream to ``position``.

        Raises:
            ValueError: The stream is secret, or ``position`` is not an integer of at least 0.
        """
        checks.non_negative_int(position=position)
        if not self.reproducible:
            raise ValueError(f"a secret stream is never repeated, so it cannot be moved to position {position}")
        on_devices, position = divmod(position, 1 << _POSITION_BITS)
        kept = {} if self._forked or process_identity() != self._process else self._on_devices
        self._stream = self._new_stream(forked=False, counter=position // CIPHER_BYTES)
        self._stream.update(bytes(position % CIPHER_BYTES))
        self._position = position
        self._device_blocks = dict(enumerate(_digits(on_devices)))
        # Keep the same stream objects, since captured graphs draw from them.
        self._on_devices = kept
        for device, stream in kept.items():
            stream.seek(self._device_blocks.get(_number(device), 0))

    def state_dict(self) -> dict[str, Any]:
        """``position``; empty for a secret stream, which is never written down."""
        return {"position": self.position} if self.reproducible else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore ``state_dict``."""
        if state:
            self.seek(state["position"])

    def follow(self, material: bytes) -> None:
        """Continue a secret stream with a new key, under which several processes draw the same numbers.

        Args:
            material: At least 48 secret bytes from the operating system, which no other stream uses.

        Raises:
            ValueError: The stream is reproducible, or the key is too short.
        """
        if self.reproducible or len(material) < _KEY_BYTES + CIPHER_BYTES:
            raise ValueError(
                f"a secret stream follows a key of at least {_KEY_BYTES + CIPHER_BYTES} bytes, got {len(material)}"
                + (" for a reproducible stream, which follows its seed" if self.reproducible else "")
            )
        self._process, self._forked, self._position = process_identity(), False, 0
        self._stream = _open_stream(material)
        self._on_devices, self._device_blocks = {}, {}

    def words(self, count: int) -> np.ndarray:
        """``count`` uniform 64-bit words as a fresh ``uint64`` array."""
        return np.frombuffer(bytearray(self._bytes(count * _WORD_BYTES)), dtype=np.uint64)

    def bernoulli_rows(self, count: int, rate: float) -> np.ndarray:
        """Ascending ``int64`` indices of the successes among ``count`` independent coins of probability ``rate``."""
        checks.sampling_rate(rate=rate)
        if rate == 1.0:
            return np.arange(count)
        return np.flatnonzero(self.words(count) < np.uint64(_threshold(rate)))

    def bernoulli_mask(self, count: int, rate: float, device: torch.device | str = "cpu") -> torch.Tensor:
        """``count`` independent coins of probability ``rate``, ``bool``, shape (count,), made on ``device``.

        On the CPU, these are the coins of ``bernoulli_rows``. The shape does not depend on the coins, so no
        synchronisation with the device is needed.
        """
        import torch

        checks.sampling_rate(rate=rate)
        device = torch.device(device)
        if rate == 1.0:
            return torch.ones(count, dtype=torch.bool, device=device)
        if device.type == "cuda":
            return self.stream_on(device).coins(count, _threshold(rate))
        return torch.from_numpy(self.words(count) < np.uint64(_threshold(rate))).to(device)

    def integers(self, high: int, count: int) -> np.ndarray:
        """``count`` uniform integers in [0, high), ``int64``."""
        checks.positive_int(high=high)
        uniform = (self.words(count) >> np.uint64(64 - _MANTISSA_BITS)) * 2.0**-_MANTISSA_BITS
        return np.asarray(uniform * high, dtype=np.int64)

    def permutation(self, count: int) -> np.ndarray:
        """A uniform permutation of 0 .. count - 1, ``int64``."""
        return np.argsort(self.words(count), kind="stable")

    def normal(
        self,
        count: int,
        dtype: torch.dtype | None = None,
        scale: float = 1.0,
        device: torch.device | str = "cpu",
    ) -> torch.Tensor:
        """``count`` independent centred normal numbers, shape (count,).

        Args:
            count: Number of samples, at least 0.
            dtype: Type of the result; default: float64. Types other than float32 are computed in float64, then cast.
            scale: Standard deviation.
            device: Device of the result.
        """
        import torch

        if dtype == torch.float32 and str(device) == "cpu":
            # NumPy's zeros are not written until the noise is; torch would start threads to write zeros.
            return self.add_normal_(torch.from_numpy(np.zeros(count, dtype=np.float32)), scale)
        return self.add_normal_(torch.zeros(count, dtype=dtype or torch.float64, device=device), scale)

    def add_normal_(self, target: torch.Tensor, scale: float | torch.Tensor = 1.0) -> torch.Tensor:
        """Add independent centred normal numbers to ``target`` in place, without a second array of its size.

        Float32 numbers on the CPU come from a stream with a separate key, drawn for this call and discarded after it.
        They are made on as many cores as torch may use, and do not depend on that number. On a CUDA device, one kernel
        makes and adds the numbers. For other devices, they are made on the CPU and copied.

        Args:
            target: Contiguous, shape (n,).
            scale: Standard deviation; on a CUDA device, it may be a one-element tensor on that device, which a captured
                graph reads again at each replay.

        Returns:
            ``target``.
        """
        import torch

        if target.device.type == "cuda":
            return self.stream_on(target.device).add_normal_(target, scale)
        scale = float(scale)
        if target.device.type != "cpu":
            return target.add_(self.normal(target.numel(), target.dtype, scale).to(target.device))
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
        # 1 - u lies in (0, 1], so the logarithm is finite.
        radius = torch.rsub(uniform[:pairs], 1.0).log_().mul_(-2.0).sqrt_().mul_(scale)
        angle = uniform[pairs:].mul_(2.0 * torch.pi)
        block[:pairs].add_(torch.cos(angle).mul_(radius))
        block[pairs:].add_(radius.mul_(angle.sin_())[: len(block) - pairs])

    def scalar_normal(self) -> float:
        """One standard normal number, equal to ``normal(1)`` but without the overhead of a dozen tensor operations."""
        uniform, turn = ((int(word) >> (64 - _MANTISSA_BITS)) * 2.0**-_MANTISSA_BITS for word in self.words(2))
        return math.sqrt(-2.0 * math.log(1.0 - uniform)) * math.cos(2.0 * math.pi * turn)

    def _bytes(self, count: int) -> bytes:
        self._renew_in_child()
        self._position += count
        return self._stream.update(bytes(count))

    def stream_on(self, device: torch.device) -> DeviceStream:
        """The stream of a device, created at first use."""
        import torch

        from mechanisms.chacha.reference import KEY_WORDS, MATERIAL_BYTES
        from mechanisms.chacha.stream import DeviceStream

        self._renew_in_child()
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        if device not in self._on_devices:
            number, key_bytes = _number(device), 4 * KEY_WORDS
            key = self._material(f"chacha:{number}") if self.reproducible else os.urandom(key_bytes)
            nonce = hashlib.sha512(f"dpmodel:{self._purpose}".encode()).digest()[: MATERIAL_BYTES - key_bytes]
            start = self._device_blocks.get(number, 0)
            self._on_devices[device] = DeviceStream(key[:key_bytes] + nonce, device, start)
        return self._on_devices[device]

    def _renew_in_child(self) -> None:
        if process_identity() != self._process:
            self._stream = self._new_stream(forked=True)
            self._on_devices, self._device_blocks = {}, {}

    def _new_stream(self, *, forked: bool, counter: int = 0) -> CipherContext:
        self._process, self._forked, self._position = process_identity(), forked, 0
        if self._seed == 0:
            return _open_stream(os.urandom(_KEY_BYTES + CIPHER_BYTES))
        return _open_stream(self._material(), counter)

    def _material(self, *place: str) -> bytes:
        """64 bytes derived from the seed and the place of use."""
        process = self._process[1].hex() if self._forked else ""
        named = ":".join(["dpmodel", str(self._seed), self._purpose, process, *place])
        return hashlib.sha512(named.encode()).digest()


def _threshold(rate: float) -> int:
    """The threshold below which a 64-bit word lies with probability ``rate``, rounded down.

    Rounding down ensures that no row is drawn with more than the accounted probability.
    """
    return int(rate * 2.0**64)


def _number(device: torch.device) -> int:
    return device.index or 0


def _digits(position: int) -> list[int]:
    found = []
    while position:
        position, digit = divmod(position, 1 << _POSITION_BITS)
        found.append(digit)
    return found


def _rebuilt(seed: int, purpose: str, position: int | None) -> SecureGenerator:
    generator = SecureGenerator(seed, purpose)
    if position is not None:
        generator.seek(position)
    return generator


def _open_stream(material: bytes, counter: int = 0) -> CipherContext:
    """The key stream of ``material`` (key and initial counter), starting ``counter`` blocks after its beginning."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    key, start = material[:_KEY_BYTES], material[_KEY_BYTES : _KEY_BYTES + CIPHER_BYTES]
    shifted = (int.from_bytes(start, "big") + counter) % 2 ** (8 * CIPHER_BYTES)
    return Cipher(algorithms.AES(key), modes.CTR(shifted.to_bytes(CIPHER_BYTES, "big"))).encryptor()
