"""The definition of the stream in NumPy: ChaCha20 blocks, and the normal numbers and coins made from them."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]

#: "expand 32-byte k", the first four input words of every block.
CONSTANTS = (0x61707865, 0x3320646E, 0x79622D32, 0x6B206574)
KEY_WORDS, NONCE_WORDS, BLOCK_WORDS = 8, 2, 16
#: Bytes of key and nonce together.
MATERIAL_BYTES = 4 * (KEY_WORDS + NONCE_WORDS)
DOUBLE_ROUNDS = 10
ROTATIONS = (16, 12, 8, 7)

#: Words for one pair of normal numbers: 64 bits of radius and 32 of angle for float32, 64 and 64 for float64.
SINGLE_WORDS, DOUBLE_WORDS = 3, 4
#: Float32 numbers per block, and coins per block.
SINGLES, COINS = 2 * (BLOCK_WORDS // SINGLE_WORDS), BLOCK_WORDS // 2
#: Factor on the scale of the float32 transform, so that rounding never leaves less than the stated noise. The error of
#: a GPU's sine and cosine is below 2**-20.5, which moves a standard deviation by less than 2**-20.
LIFT = 1.0 + 2.0**-19


def block_words(material: bytes, start: int, blocks: int) -> Words:
    """The key stream of ``blocks`` counters from ``start`` on, ``uint32``, shape (16, blocks).

    Args:
        material: Key (32 bytes) and nonce (8 bytes).
        start: First block counter, modulo 2**64.
        blocks: Number of blocks.

    Example:
        >>> key, nonce = bytes(range(32)), bytes.fromhex("0000004a00000000")  # RFC 8439, section 2.3.2
        >>> hex(block_words(key + nonce, start=0x09000000_00000001, blocks=1)[0, 0])
        '0xe4e7f110'
    """
    counters = np.arange(blocks, dtype=np.uint64) + np.uint64(start % 2**64)
    state = np.empty((BLOCK_WORDS, blocks), dtype=np.uint32)
    state[:4] = np.array(CONSTANTS, dtype=np.uint32)[:, None]
    state[4:12] = np.frombuffer(material, "<u4", KEY_WORDS)[:, None]
    state[12] = counters & np.uint64(0xFFFFFFFF)
    state[13] = counters >> np.uint64(32)
    state[14:] = np.frombuffer(material, "<u4", NONCE_WORDS, offset=4 * KEY_WORDS)[:, None]
    rows = [row.copy() for row in state]
    for _ in range(DOUBLE_ROUNDS):
        for column in range(4):
            _quarter_round(rows, column, 4 + column, 8 + column, 12 + column)
        for column in range(4):
            _quarter_round(rows, column, 4 + (column + 1) % 4, 8 + (column + 2) % 4, 12 + (column + 3) % 4)
    return np.stack(rows) + state


def _quarter_round(rows: list[Words], a: int, b: int, c: int, d: int) -> None:
    for bits, (first, second, third) in zip(ROTATIONS, ((a, b, d), (c, d, b)) * 2, strict=True):
        rows[first] += rows[second]
        rows[third] ^= rows[first]
        rows[third] = (rows[third] << np.uint32(bits)) | (rows[third] >> np.uint32(32 - bits))


def singles(words: Words, size: int, scale: float = 1.0) -> npt.NDArray[np.float64]:
    """A draw of ``size`` float32 normal numbers as it would be in exact arithmetic, shape (size,).

    Pair ``k`` of a block is ``r cos(t), r sin(t)`` with ``r = scale * sqrt(-2 ln u)``. Here ``u = (w + 1/2) / 2**64``
    for the 64-bit word ``w`` made of words ``3k`` (lower half) and ``3k + 1``, and ``t = turn * pi / 2**31`` for word
    ``3k + 2`` as a signed integer. The effects of this discretisation are described in ``mechanisms.box_muller``.

    Args:
        words: Words of ``ceil(size / 10)`` blocks, shape (16, blocks).
        size: Number of samples.
        scale: Standard deviation.
    """
    numbers = []
    for low in range(0, SINGLE_WORDS * (SINGLES // 2), SINGLE_WORDS):
        uniform = (words[low + 1] * 2.0**32 + words[low] + 0.5) * 2.0**-64
        radius = np.sqrt(-2.0 * np.log(uniform)) * (scale * LIFT)
        angle = words[low + 2].view(np.int32) * (math.pi * 2.0**-31)
        numbers += [radius * np.cos(angle), radius * np.sin(angle)]
    return np.concatenate(numbers)[:size]


def coins(words: Words, size: int, threshold: int) -> npt.NDArray[np.bool_]:
    """Whether each of ``size`` 64-bit words lies below ``threshold``, shape (size,).

    Coin ``k`` of a block uses the 64-bit word made of words ``2k`` (lower half) and ``2k + 1``.

    Args:
        words: Words of ``ceil(size / 8)`` blocks, shape (16, blocks).
        size: Number of coins.
        threshold: Integer in [0, 2**64).
    """
    whole = words[0::2].astype(np.uint64) | (words[1::2].astype(np.uint64) << np.uint64(32))
    return np.asarray(whole < np.uint64(threshold)).ravel()[:size]
