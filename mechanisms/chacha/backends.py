"""Choice of the backend that makes the stream on a device, verified on that device before the first secret draw."""

from __future__ import annotations

import importlib
import os
import warnings
from functools import cache
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from mechanisms.chacha import reference
from monitors.errors import UnprotectedUpdateError

if TYPE_CHECKING:
    import numpy.typing as npt

#: Module of each backend, in order of preference.
_MODULES = {"triton": "mechanisms.chacha.kernels", "torch": "mechanisms.chacha.tensor_ops"}
#: A public test key, from RFC 8439, section 2.3.2.
_TEST_MATERIAL = bytes(range(32)) + bytes.fromhex("0000004a00000000")
#: The counter's lower half overflows within the tested blocks.
_TEST_START, _TEST_BLOCKS, _TEST_SCALE = 0x09000000_FFFFFF9C, 300, 0.5
#: Tolerance against exact arithmetic, in standard deviations: the error of a GPU's sine times the largest radius.
_CLOSE = 2e-5


class Backend(Protocol):
    """One implementation of the stream; see ``mechanisms.chacha.tensor_ops`` for the meaning of the functions."""

    def reserve(self, counter: Tensor, blocks: int) -> Tensor:
        """Advance the counter by ``blocks``, and return its previous value."""

    def words(self, key: Tensor, start: Tensor, blocks: int) -> Tensor:
        """The key stream, ``int32``, shape (16, blocks)."""

    def add_singles(self, target: Tensor, key: Tensor, start: Tensor, scale: float | Tensor) -> None:
        """Add normal numbers to a float32 vector in place."""

    def write_coins(self, out: Tensor, key: Tensor, start: Tensor, threshold: int) -> None:
        """Write coins to a ``bool`` vector."""


def input_words(material: bytes, device: torch.device) -> Tensor:
    """The input words of a block except the counter: constants, key and nonce; ``int32``, shape (14,)."""
    fixed = np.concatenate([np.array(reference.CONSTANTS, dtype="<u4"), np.frombuffer(material, "<u4")])
    return torch.from_numpy(fixed.view(np.int32)).to(device, copy=True)


@cache
def backend_for(device: torch.device) -> tuple[str, Backend]:
    """Name and functions of the fastest backend that produces the correct stream on ``device``.

    This is Triton on a GPU (or in interpreted mode), otherwise torch operations. Both make the same stream, so a
    missing or broken Triton costs speed but not secrecy.

    Raises:
        UnprotectedUpdateError: No backend produces the correct stream.
    """
    names = list(_MODULES) if device.type != "cpu" or os.environ.get("TRITON_INTERPRET") == "1" else ["torch"]
    for name in names:
        try:
            backend = cast("Backend", importlib.import_module(_MODULES[name]))
            require_known_answers(backend, device)
        except Exception as error:
            if name == names[-1]:
                raise
            warnings.warn(
                f"Secure noise on {device} is made by torch operations, because the Triton kernel cannot be used "
                f"({type(error).__name__}: {error}). The stream is the same and equally secret, but slower. For full "
                "speed, install a Triton version that matches torch, and a C compiler",
                RuntimeWarning,
                stacklevel=2,
            )
        else:
            return name, backend
    raise AssertionError("a backend was returned or an error was raised")


def require_known_answers(backend: Backend, device: torch.device) -> None:
    """Compare a backend with ``mechanisms.chacha.reference`` on ``device``, with a public key.

    Raises:
        UnprotectedUpdateError: The results differ; the message names the first different word, number or coin.
    """
    blocks, scale = _TEST_BLOCKS, _TEST_SCALE
    key = input_words(_TEST_MATERIAL, device)
    counter = torch.full((1,), _TEST_START, dtype=torch.int64, device=device)
    start = backend.reserve(counter, blocks)
    where = f"on {device}"
    _require_same(f"counter {where}", _numpy(torch.cat([start, counter])), np.array([0, blocks]) + _TEST_START)
    expected = reference.block_words(_TEST_MATERIAL, _TEST_START, blocks)
    _require_same(f"(word, block) {where}", _numpy(backend.words(key, start, blocks)).view(np.uint32), expected)
    size = blocks * reference.SINGLES - 3
    target = torch.full((size,), 2.0, dtype=torch.float32, device=device)
    backend.add_singles(target, key, start, scale)
    found = _numpy(target).astype(np.float64) - 2.0
    _require_same(f"normal number {where}", found, reference.singles(expected, size, scale), _CLOSE * scale)
    size, threshold = blocks * reference.COINS - 3, 3 * 2**62 + 12345
    tossed = torch.zeros(size, dtype=torch.bool, device=device)
    backend.write_coins(tossed, key, start, threshold)
    _require_same(f"coin {where}", _numpy(tossed), reference.coins(expected, size, threshold))


def _numpy(values: Tensor) -> npt.NDArray:
    return values.cpu().numpy()


def _require_same(what: str, found: npt.NDArray, expected: npt.NDArray, tolerance: float = 0.0) -> None:
    difference = difference_in(what, found, expected, tolerance)
    if difference:
        raise UnprotectedUpdateError(
            f"the ChaCha20 stream is not the one defined by RFC 8439 and the transform: {difference}. It is "
            "not used for noise. Train on the CPU, or update torch, Triton and the driver"
        )


def difference_in(what: str, found: npt.NDArray, expected: npt.NDArray, tolerance: float = 0.0) -> str:
    """Description of the first difference between two arrays, and the number of differences; empty if there is none.

    Example:
        >>> difference_in("word", np.array([1, 2], dtype=np.uint32), np.array([1, 3], dtype=np.uint32))
        'word 1 is 0x2 instead of 0x3 (1 of 2 differ)'
    """
    if found.shape != expected.shape:
        return f"{what} has shape {found.shape} instead of {expected.shape}"
    off = ~(np.abs(found - expected) <= tolerance) if found.dtype.kind == "f" else found != expected
    places = np.argwhere(off)
    if not len(places):
        return ""
    place = tuple(places[0].tolist())
    one, other = (
        hex(values[place]) if values.dtype.kind == "u" else str(values[place]) for values in (found, expected)
    )
    name = place[0] if len(place) == 1 else place
    return f"{what} {name} is {one} instead of {other} ({len(places)} of {found.size} differ)"
