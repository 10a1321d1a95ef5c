"""The stream in plain torch operations, for devices without Triton: the same words as the kernels, but slower."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from mechanisms.chacha.reference import (
    BLOCK_WORDS,
    COINS,
    CONSTANTS,
    DOUBLE_ROUNDS,
    DOUBLE_WORDS,
    KEY_WORDS,
    LIFT,
    ROTATIONS,
    SINGLE_WORDS,
    SINGLES,
)

#: Blocks made at once, to bound the scratch memory: about five times the 64 bytes of each block.
_BLOCKS = {"cpu": 1 << 13, "cuda": 1 << 20}
#: Row of the counter's two words among the input words.
_COUNTER_ROW = len(CONSTANTS) + KEY_WORDS
_LOW_HALF = 0xFFFFFFFF
_MANTISSA_BITS = 53
_DOUBLES = 2 * (BLOCK_WORDS // DOUBLE_WORDS)


def reserve(counter: Tensor, blocks: int) -> Tensor:
    """Advance the counter by ``blocks``, and return its previous value, ``int64``, shape (1,)."""
    start = counter.clone()
    counter.add_(blocks)
    return start


def words(key: Tensor, start: Tensor, blocks: int) -> Tensor:
    """The key stream of ``blocks`` counters from ``start`` on, ``int32`` bit patterns, shape (16, blocks)."""
    out = torch.empty((BLOCK_WORDS, blocks), dtype=torch.int32, device=key.device)
    for first, count in _chunks(blocks, key.device):
        out[:, first : first + count] = _some_words(key, start + first, count)
    return out


def add_singles(target: Tensor, key: Tensor, start: Tensor, scale: float | Tensor) -> None:
    """Add a draw of normal numbers to a contiguous float32 vector in place."""
    segment = -(-len(target) // SINGLES)
    for first, count in _chunks(segment, target.device):
        numbers = _singles(_some_words(key, start + first, count), scale)
        _place(target, segment, first, numbers, accumulate=True)


def add_doubles(
    target: Tensor, words_of: Callable[[Tensor, int], Tensor], start: Tensor, scale: float | Tensor
) -> None:
    """Add a draw of normal numbers, computed in float64 and then cast, to a contiguous vector of any type in place.

    Args:
        target: Shape (n,).
        words_of: Function of either backend from a first counter and a number of blocks to their words.
        start: First block counter.
        scale: Standard deviation.
    """
    segment = blocks_of_doubles(len(target))
    for first, count in _chunks(segment, target.device):
        _place(target, segment, first, _doubles(words_of(start + first, count), scale), accumulate=True)


def blocks_of_doubles(size: int) -> int:
    """Number of blocks for a draw of ``size`` float64 numbers."""
    return -(-size // _DOUBLES)


def write_coins(out: Tensor, key: Tensor, start: Tensor, threshold: int) -> None:
    """Write a draw of coins to a contiguous ``bool`` vector."""
    segment = -(-len(out) // COINS)
    # Compare as signed integers: flipping the upper bit maps the unsigned order to the signed one.
    signed = threshold - 2**63
    for first, count in _chunks(segment, out.device):
        found = _some_words(key, start + first, count)
        whole = _unsigned(found[0::2]) | (_unsigned(found[1::2]) << 32)
        _place(out, segment, first, (whole ^ -(2**63)) < signed, accumulate=False)


def _chunks(blocks: int, device: torch.device) -> Iterator[tuple[int, int]]:
    most = _BLOCKS.get(device.type, _BLOCKS["cpu"])
    for first in range(0, blocks, most):
        yield first, min(most, blocks - first)


def _place(out: Tensor, segment: int, first: int, rows: Tensor, *, accumulate: bool) -> None:
    for number, row in enumerate(rows):
        begin = number * segment + first
        place = out[begin : begin + len(row)]
        if accumulate:
            place.add_(row[: len(place)].to(place.dtype))
        else:
            place.copy_(row[: len(place)])


def _singles(found: Tensor, scale: float | Tensor) -> Tensor:
    used = found[: SINGLE_WORDS * (SINGLES // 2)]
    uniform = _uniform(used[0::SINGLE_WORDS], used[1::SINGLE_WORDS])
    radius = uniform.log_().mul_(-2.0).to(torch.float32).sqrt_().mul_(scale * LIFT)
    angle = used[2::SINGLE_WORDS].to(torch.float32).mul_(math.pi * 2.0**-31)
    return torch.stack([angle.cos() * radius, angle.sin() * radius], dim=1).flatten(0, 1)


def _doubles(found: Tensor, scale: float | Tensor) -> Tensor:
    uniform = _uniform(found[0::DOUBLE_WORDS], found[1::DOUBLE_WORDS])
    radius = uniform.log_().mul_(-2.0).sqrt_().mul_(scale)
    turn = (_unsigned(found[3::DOUBLE_WORDS]) << 32 | _unsigned(found[2::DOUBLE_WORDS])) >> (64 - _MANTISSA_BITS)
    angle = turn.to(torch.float64).mul_(2.0 * math.pi * 2.0**-_MANTISSA_BITS)
    return torch.stack([angle.cos() * radius, angle.sin() * radius], dim=1).flatten(0, 1)


def _uniform(low: Tensor, high: Tensor) -> Tensor:
    upper = _unsigned(high).to(torch.float64).mul_(2.0**32)
    return upper.add_(_unsigned(low).to(torch.float64)).add_(0.5).mul_(2.0**-64)


def _unsigned(bits: Tensor) -> Tensor:
    return bits.to(torch.int64).bitwise_and_(_LOW_HALF)


def _some_words(key: Tensor, start: Tensor, count: int) -> Tensor:
    counters = start + torch.arange(count, dtype=torch.int64, device=key.device)
    halves = [(counters & _LOW_HALF).to(torch.int32), (counters >> 32).to(torch.int32)]
    fixed = [row.expand(count) for row in key]
    state = torch.stack([*fixed[:_COUNTER_ROW], *halves, *fixed[_COUNTER_ROW:]])
    a, b, c, d = state.clone().split(4)
    for _ in range(DOUBLE_ROUNDS):
        _quarter_rounds(a, b, c, d)
        b, c, d = b.roll(-1, 0), c.roll(-2, 0), d.roll(-3, 0)
        _quarter_rounds(a, b, c, d)
        b, c, d = b.roll(1, 0), c.roll(2, 0), d.roll(3, 0)
    return torch.cat([a, b, c, d]).add_(state)


def _quarter_rounds(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> None:
    """Four quarter rounds in parallel: the rows of each argument are four words of the state."""
    for bits, (first, second, third) in zip(ROTATIONS, ((a, b, d), (c, d, b)) * 2, strict=True):
        first.add_(second)
        third.bitwise_xor_(first)
        # The right shift copies the sign bit, which the mask removes.
        carried = (third >> (32 - bits)).bitwise_and_((1 << bits) - 1)
        third.bitwise_left_shift_(bits).bitwise_or_(carried)
