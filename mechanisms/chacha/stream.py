"""A key stream on one device, which holds the key, the block counter and all drawn numbers."""

from __future__ import annotations

from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor

from mechanisms.chacha.backends import backend_for, input_words
from mechanisms.chacha.reference import COINS, MATERIAL_BYTES, SINGLES
from mechanisms.chacha.tensor_ops import add_doubles, blocks_of_doubles
from mechanisms.fork import process_identity

#: Outside of this range, the transform would leave the normal numbers of float32.
SINGLE_SCALES = (1e-30, 1e30)
#: Streams used by captured graphs, kept alive because a graph refers to key and counter by address only.
_CAPTURED: set[DeviceStream] = set()


class DeviceStream:
    """ChaCha20 on one device, with a block counter that only moves forward.

    Guarantees: no block is used twice. Each draw reserves its blocks by advancing the counter on the device, so a
    replayed CUDA graph draws fresh numbers. With Triton, the counter advances atomically, so draws on several CUDA
    streams share no block; with torch operations, draws must be ordered, like all writes to one tensor. A stream cannot
    be copied, pickled, or used in a forked process.

    Args:
        material: Key (32 bytes) and nonce (8 bytes); no other stream may use the same pair.
        device: Device on which numbers are made; a CUDA device must have an index.
        start: First block.

    Raises:
        RuntimeError: A CUDA graph is being captured; each replay would reset the counter.
    """

    def __init__(self, material: bytes, device: torch.device, start: int = 0) -> None:
        if len(material) != MATERIAL_BYTES:
            raise ValueError(f"key and nonce must be {MATERIAL_BYTES} bytes together, got {len(material)}")
        self.device = device
        self._refuse_capture("start a secure stream")
        self._process = process_identity()
        # Tensors created in inference mode cannot be modified in place outside of it.
        with torch.inference_mode(False):
            self.backend_name, self._backend = backend_for(device)
            self._key = input_words(material, device)
            self._counter = torch.full((1,), start, dtype=torch.int64, device=device)
        self._settle()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a DeviceStream cannot be copied or pickled, because two streams with one key would draw the same numbers. "
            "Copy its SecureGenerator"
        )

    @property
    def blocks(self) -> int:
        """Number of blocks used so far, including replays. Synchronises with the device."""
        return int(self._counter.item())

    def seek(self, start: int) -> None:
        """Continue from block ``start``, also in captured graphs.

        Raises:
            RuntimeError: A CUDA graph is being captured.
        """
        self._refuse_capture("move a secure stream")
        self._counter.fill_(start)
        self._settle()

    def add_normal_(self, target: Tensor, scale: float | Tensor = 1.0) -> Tensor:
        """Add independent centred normal numbers to ``target`` in place.

        Float32 numbers have 64 random bits in the radius and 32 in the angle, like those of ``mechanisms.box_muller``;
        all other types are computed in float64, then cast.

        Args:
            target: Contiguous tensor of a floating-point type and any shape, on this device.
            scale: Standard deviation: a number, or a one-element tensor on this device, which a captured graph reads
                again at each replay.

        Returns:
            ``target``.

        Raises:
            ValueError: ``target`` is on a different device, not contiguous, or not of a floating-point type.
        """
        if target.device != self.device or not target.is_contiguous() or not target.is_floating_point():
            raise ValueError(
                f"noise of the stream on {self.device} cannot be added in place to {target.dtype} on {target.device} "
                f"with strides {target.stride()}; pass a contiguous floating-point tensor on {self.device}"
            )
        flat, scale = target.detach().view(-1), self._scale(scale)
        if not len(flat):
            return target
        if target.dtype == torch.float32 and _suits_singles(scale):
            self._backend.add_singles(flat, self._key, self._reserve(-(-len(flat) // SINGLES)), scale)
        else:
            start = self._reserve(blocks_of_doubles(len(flat)))
            add_doubles(flat, partial(self._backend.words, self._key), start, scale)
        return target

    def coins(self, count: int, threshold: int) -> Tensor:
        """Whether each of ``count`` 64-bit words lies below ``threshold``: ``bool``, shape (count,).

        Args:
            count: Number of coins, at least 0.
            threshold: Integer in [0, 2**64).
        """
        out = torch.empty(count, dtype=torch.bool, device=self.device)
        if count:
            self._backend.write_coins(out, self._key, self._reserve(-(-count // COINS)), threshold)
        return out

    def _reserve(self, blocks: int) -> Tensor:
        if process_identity() != self._process:
            raise RuntimeError(
                "a DeviceStream cannot be used in a forked process, where its numbers would repeat. Draw from its "
                "SecureGenerator"
            )
        if self._capturing():
            _CAPTURED.add(self)
        return self._backend.reserve(self._counter, blocks)

    def _settle(self) -> None:
        """Wait until the counter is written: a draw on a different CUDA stream could overtake it and repeat blocks."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()

    def _scale(self, scale: Any) -> float | Tensor:
        if not isinstance(scale, Tensor):
            return float(scale)
        if scale.numel() != 1 or scale.device != self.device:
            raise ValueError(
                f"scale must be a one-element tensor on {self.device}, got shape {tuple(scale.shape)} on {scale.device}"
            )
        return scale.detach().reshape(())

    def _capturing(self) -> bool:
        return self.device.type == "cuda" and torch.cuda.is_current_stream_capturing()

    def _refuse_capture(self, what: str) -> None:
        if self._capturing():
            raise RuntimeError(
                f"cannot {what} while a CUDA graph is captured: every replay would reset its counter and repeat the "
                "noise. Draw once before the capture"
            )


def _suits_singles(scale: float | Tensor) -> bool:
    low, high = SINGLE_SCALES
    return isinstance(scale, Tensor) or low < scale < high
