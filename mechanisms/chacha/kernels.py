"""Triton kernels for the stream: key stream, transform and addition in one pass over the target.

Importing this module imports Triton. To run the kernels on the CPU in tests, set ``TRITON_INTERPRET=1`` before
importing Triton.
"""

import os
from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from mechanisms.chacha.reference import BLOCK_WORDS, COINS, DOUBLE_ROUNDS, LIFT, SINGLES

_WARPS = 4
#: Number of blocks below which a draw is short, and blocks per program of a short draw (fewer, to use more processors)
#: and of a long one.
_SHORT, _SHORT_PROGRAM, _LONG_PROGRAM = 1 << 17, 128, 256
#: The interpreter's time grows with the number of programs, not with their size.
_INTERPRETED, _INTERPRETED_PROGRAM = os.environ.get("TRITON_INTERPRET") == "1", 1 << 15
#: Arguments whose values must not trigger a recompilation, because a captured graph cannot compile.
_VARYING = ("blocks", "size", "segment", "high", "low")


@triton.jit
def _rotated(word, BITS: tl.constexpr):
    return (word << BITS) | (word >> (32 - BITS))


@triton.jit
def _quarter_round(a, b, c, d):
    a += b
    d = _rotated(d ^ a, 16)
    c += d
    b = _rotated(b ^ c, 12)
    a += b
    d = _rotated(d ^ a, 8)
    c += d
    b = _rotated(b ^ c, 7)
    return a, b, c, d


@triton.jit
def _fixed_word(key, NUMBER: tl.constexpr, PROGRAM: tl.constexpr):
    return tl.zeros([PROGRAM], tl.uint32) + tl.load(key + NUMBER).to(tl.uint32, bitcast=True)


@triton.jit
def _block_words(key, counter, ROUNDS: tl.constexpr, PROGRAM: tl.constexpr):
    i0, i1 = _fixed_word(key, 0, PROGRAM), _fixed_word(key, 1, PROGRAM)
    i2, i3 = _fixed_word(key, 2, PROGRAM), _fixed_word(key, 3, PROGRAM)
    i4, i5 = _fixed_word(key, 4, PROGRAM), _fixed_word(key, 5, PROGRAM)
    i6, i7 = _fixed_word(key, 6, PROGRAM), _fixed_word(key, 7, PROGRAM)
    i8, i9 = _fixed_word(key, 8, PROGRAM), _fixed_word(key, 9, PROGRAM)
    i10, i11 = _fixed_word(key, 10, PROGRAM), _fixed_word(key, 11, PROGRAM)
    i12, i13 = counter.to(tl.uint32), (counter >> 32).to(tl.uint32)
    i14, i15 = _fixed_word(key, 12, PROGRAM), _fixed_word(key, 13, PROGRAM)
    s0, s1, s2, s3, s4, s5, s6, s7 = i0, i1, i2, i3, i4, i5, i6, i7
    s8, s9, s10, s11, s12, s13, s14, s15 = i8, i9, i10, i11, i12, i13, i14, i15
    for _ in range(ROUNDS):
        s0, s4, s8, s12 = _quarter_round(s0, s4, s8, s12)
        s1, s5, s9, s13 = _quarter_round(s1, s5, s9, s13)
        s2, s6, s10, s14 = _quarter_round(s2, s6, s10, s14)
        s3, s7, s11, s15 = _quarter_round(s3, s7, s11, s15)
        s0, s5, s10, s15 = _quarter_round(s0, s5, s10, s15)
        s1, s6, s11, s12 = _quarter_round(s1, s6, s11, s12)
        s2, s7, s8, s13 = _quarter_round(s2, s7, s8, s13)
        s3, s4, s9, s14 = _quarter_round(s3, s4, s9, s14)
    s0, s1, s2, s3, s4, s5, s6, s7 = s0 + i0, s1 + i1, s2 + i2, s3 + i3, s4 + i4, s5 + i5, s6 + i6, s7 + i7
    s8, s9, s10, s11, s12, s13 = s8 + i8, s9 + i9, s10 + i10, s11 + i11, s12 + i12, s13 + i13
    return s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11, s12, s13, s14 + i14, s15 + i15


@triton.jit
def _store_word(out, word, place, live):
    tl.store(out + place, word.to(tl.int32, bitcast=True), live)


@triton.jit(do_not_specialize=_VARYING)
def _words_kernel(out, key, start, blocks, ROUNDS: tl.constexpr, PROGRAM: tl.constexpr):
    block = tl.program_id(0).to(tl.int64) * PROGRAM + tl.arange(0, PROGRAM)
    live = block < blocks
    step = blocks.to(tl.int64)
    s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11, s12, s13, s14, s15 = _block_words(
        key, tl.load(start) + block, ROUNDS, PROGRAM
    )
    _store_word(out, s0, block, live)
    _store_word(out, s1, block + step, live)
    _store_word(out, s2, block + 2 * step, live)
    _store_word(out, s3, block + 3 * step, live)
    _store_word(out, s4, block + 4 * step, live)
    _store_word(out, s5, block + 5 * step, live)
    _store_word(out, s6, block + 6 * step, live)
    _store_word(out, s7, block + 7 * step, live)
    _store_word(out, s8, block + 8 * step, live)
    _store_word(out, s9, block + 9 * step, live)
    _store_word(out, s10, block + 10 * step, live)
    _store_word(out, s11, block + 11 * step, live)
    _store_word(out, s12, block + 12 * step, live)
    _store_word(out, s13, block + 13 * step, live)
    _store_word(out, s14, block + 14 * step, live)
    _store_word(out, s15, block + 15 * step, live)


@triton.jit
def _add_pair(out, low, high, turn, scale, place, segment, size, live):
    uniform = (high.to(tl.float64) * 4294967296.0 + low.to(tl.float64) + 0.5) * 5.421010862427522e-20  # 2**-64
    radius = tl.sqrt((tl.log(uniform) * -2.0).to(tl.float32)) * scale
    angle = turn.to(tl.int32, bitcast=True).to(tl.float32) * 1.4629180792671596e-09  # pi / 2**31
    first = live & (place < size)
    tl.store(out + place, tl.load(out + place, first) + radius * tl.cos(angle), first)
    place += segment
    second = live & (place < size)
    tl.store(out + place, tl.load(out + place, second) + radius * tl.sin(angle), second)
    return place + segment


@triton.jit(do_not_specialize=_VARYING)
def _singles_kernel(
    out,
    key,
    start,
    scale,
    size,
    segment,
    LIFTED: tl.constexpr,
    SCALE_ON_DEVICE: tl.constexpr,
    ROUNDS: tl.constexpr,
    PROGRAM: tl.constexpr,
):
    block = tl.program_id(0).to(tl.int64) * PROGRAM + tl.arange(0, PROGRAM)
    live = block < segment
    s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11, s12, s13, s14, s15 = _block_words(
        key, tl.load(start) + block, ROUNDS, PROGRAM
    )
    if SCALE_ON_DEVICE:
        lifted = tl.load(scale) * LIFTED
    else:
        lifted = scale * LIFTED
    place = _add_pair(out, s0, s1, s2, lifted, block, segment, size, live)
    place = _add_pair(out, s3, s4, s5, lifted, place, segment, size, live)
    place = _add_pair(out, s6, s7, s8, lifted, place, segment, size, live)
    place = _add_pair(out, s9, s10, s11, lifted, place, segment, size, live)
    _add_pair(out, s12, s13, s14, lifted, place, segment, size, live)


@triton.jit
def _store_coin(out, word_low, word_high, low, high, place, segment, size, live):
    success = (word_high < high) | ((word_high == high) & (word_low < low))
    tl.store(out + place, success.to(tl.int8), live & (place < size))
    return place + segment


@triton.jit(do_not_specialize=_VARYING)
def _coins_kernel(out, key, start, low, high, size, segment, ROUNDS: tl.constexpr, PROGRAM: tl.constexpr):
    block = tl.program_id(0).to(tl.int64) * PROGRAM + tl.arange(0, PROGRAM)
    live = block < segment
    s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11, s12, s13, s14, s15 = _block_words(
        key, tl.load(start) + block, ROUNDS, PROGRAM
    )
    below_low = tl.zeros([PROGRAM], tl.uint32) + low.to(tl.uint32)
    below_high = tl.zeros([PROGRAM], tl.uint32) + high.to(tl.uint32)
    place = _store_coin(out, s0, s1, below_low, below_high, block, segment, size, live)
    place = _store_coin(out, s2, s3, below_low, below_high, place, segment, size, live)
    place = _store_coin(out, s4, s5, below_low, below_high, place, segment, size, live)
    place = _store_coin(out, s6, s7, below_low, below_high, place, segment, size, live)
    place = _store_coin(out, s8, s9, below_low, below_high, place, segment, size, live)
    place = _store_coin(out, s10, s11, below_low, below_high, place, segment, size, live)
    place = _store_coin(out, s12, s13, below_low, below_high, place, segment, size, live)
    _store_coin(out, s14, s15, below_low, below_high, place, segment, size, live)


@triton.jit(do_not_specialize=_VARYING)
def _reserve_kernel(counter, start, blocks):
    tl.store(start, tl.atomic_add(counter, blocks.to(tl.int64)))


def reserve(counter: Tensor, blocks: int) -> Tensor:
    """Advance the counter by ``blocks`` in one atomic operation, and return its previous value, ``int64``, shape (1,).

    Two draws never get the same blocks, even if they run concurrently on several CUDA streams.
    """
    start = torch.empty(1, dtype=torch.int64, device=counter.device)
    with _on(counter):
        _reserve_kernel[(1,)](counter, start, blocks, num_warps=1)
    return start


def words(key: Tensor, start: Tensor, blocks: int) -> Tensor:
    """The key stream of ``blocks`` counters from ``start`` on, ``int32`` bit patterns, shape (16, blocks)."""
    out = torch.empty((BLOCK_WORDS, blocks), dtype=torch.int32, device=key.device)
    if blocks:
        grid, program = _grid(blocks)
        with _on(out):
            _words_kernel[grid](out, key, start, blocks, DOUBLE_ROUNDS, program, num_warps=_WARPS)
    return out


def add_singles(target: Tensor, key: Tensor, start: Tensor, scale: float | Tensor) -> None:
    """Add a draw of normal numbers to a contiguous float32 vector in place."""
    segment = -(-len(target) // SINGLES)
    grid, program = _grid(segment)
    on_device = isinstance(scale, Tensor)
    given = scale.to(torch.float32) if isinstance(scale, Tensor) else float(scale)
    with _on(target):
        _singles_kernel[grid](
            target,
            key,
            start,
            given,
            len(target),
            segment,
            LIFT,
            on_device,
            DOUBLE_ROUNDS,
            program,
            num_warps=_WARPS,
        )


def write_coins(out: Tensor, key: Tensor, start: Tensor, threshold: int) -> None:
    """Write a draw of coins to a contiguous ``bool`` vector."""
    segment = -(-len(out) // COINS)
    grid, program = _grid(segment)
    low, high = _signed(threshold % 2**32), _signed(threshold >> 32)
    with _on(out):
        _coins_kernel[grid](
            out.view(torch.int8), key, start, low, high, len(out), segment, DOUBLE_ROUNDS, program, num_warps=_WARPS
        )


def _grid(blocks: int) -> tuple[tuple[int], int]:
    program = _SHORT_PROGRAM if blocks < _SHORT else _LONG_PROGRAM
    program = _INTERPRETED_PROGRAM if _INTERPRETED else program
    return (triton.cdiv(blocks, program),), program


def _signed(half: int) -> int:
    """The same 32 bits as a signed integer, so that the argument always has the same type."""
    return half - 2**32 if half >= 2**31 else half


def _on(tensor: Tensor) -> AbstractContextManager[object]:
    """Make the tensor's device current, because Triton launches on the current device."""
    return torch.cuda.device(tensor.device) if tensor.device.type == "cuda" else nullcontext()
