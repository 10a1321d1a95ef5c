"""Rows that a wrapper repeats."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dpmodel.preflight.readings import Readings

Rows = npt.NDArray[np.int64]

#: Bytes of a data set in memory that are compared; in a larger data set, a slice of each row is compared.
MAX_BYTES = 2**29

#: Distinct rows that must repeat in the same way: a data set with few values repeats rows by chance.
MIN_DISTINCT = 32
#: The same if rows are read one by one, when few can be compared.
MIN_DISTINCT_READ = 16

#: Share of the repetitions that one repeated block must explain.
_SHARE = 0.9

#: Largest number of successive repetitions that is tried.
_MAX_RUN = 16

_CONFIRMED = 256

#: 64-bit words that are mixed at a time; they fit into the cache.
_CHUNK = 2**15


def row_hashes(tensors: Sequence[Tensor]) -> Rows:
    """A number for each row of tensors of the same length, shape (n,): equal rows have equal numbers.

    Args:
        tensors: Each of shape (n, ...), on any device.
    """
    size = len(tensors[0])
    total = np.zeros(size, dtype=np.int64)
    bytes_left = MAX_BYTES // max(size, 1)
    for tensor in tensors:
        words = _words(tensor.detach().reshape(size, math.prod(tensor.shape[1:])), max(8, bytes_left))
        bytes_left -= words.shape[1] * 8
        factors = np.random.default_rng().integers(-(2**63), 2**63, words.shape[1], dtype=np.int64) | 1
        step = max(1, _CHUNK // max(words.shape[1], 1))
        for begin in range(0, size, step):
            part = words[begin : begin + step]
            # Round floating-point numbers end in zeros, and a product modulo 2**64 would keep these.
            total[begin : begin + step] += (part ^ (part >> 23) ^ (part >> 55)) @ factors
        total *= np.int64(6_364_136_223_846_793_005)
    return total


def _words(rows: Tensor, most_bytes: int) -> Rows:
    """The bytes of each row as 64-bit words; a random slice of rows longer than ``most_bytes``."""
    entries = max(1, most_bytes // rows.element_size())
    if rows.shape[1] > entries:
        begin = int(np.random.default_rng().integers(rows.shape[1] - entries + 1))
        rows = rows[:, begin : begin + entries]
    content = rows.cpu().contiguous().view(torch.uint8).numpy()
    missing = -content.shape[1] % 8
    if missing:
        content = np.pad(content, ((0, 0), (0, missing)))
    return content.view(np.int64)


def repetition(hashes: Rows) -> str | None:
    """How a wrapper repeats rows, in words; None if rows do not repeat, or only by chance.

    Args:
        hashes: A number for each row; equal rows have equal numbers.

    Example:
        >>> once = np.arange(100)
        >>> repetition(np.tile(once, 3))
        'rows 0 to 199 occur again 100 rows later'
        >>> repetition(np.repeat(once, 2))
        'every row occurs a multiple of 2 times'
        >>> repetition(once % 7) is None
        True
    """
    _, value, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    divisor = int(np.gcd.reduce(counts)) if len(counts) else 1
    block = _repeated_block(value, counts)
    if block is not None:
        begin, end, stride = block
        return f"rows {begin} to {end} occur again {stride} rows later"
    if divisor > 1 and len(counts) >= MIN_DISTINCT:
        return f"every row occurs a multiple of {divisor} times"
    return None


def _repeated_block(value: Rows, counts: Rows) -> tuple[int, int, int] | None:
    """First row, last row and distance of one repeated block of rows, if it explains the repetitions."""
    order = np.argsort(value, kind="stable")
    ties = value[order][1:] == value[order][:-1]
    rows, strides = order[:-1][ties], np.diff(order)[ties]
    if not len(rows):
        return None
    stride = int(np.bincount(strides).argmax())
    again = np.sort(rows[strides == stride])
    within = int(again[-1] - again[0]) + 1
    explained = len(again) >= _SHARE * max(len(rows), within)
    if stride > 1 and explained and len(np.unique(value[again])) >= MIN_DISTINCT:
        return int(again[0]), int(again[-1]), stride
    return None


def equal_rows(hashes: Rows) -> int:
    """The number of rows that equal some other row."""
    counts = np.unique(hashes, return_counts=True)[1]
    return int(counts[counts > 1].sum())


def confirmed(tensors: Sequence[Tensor], hashes: Rows) -> bool:
    """Whether rows with equal hashes are equal; checked for some of them."""
    order = np.argsort(hashes, kind="stable")
    ties = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    chosen = np.random.default_rng().permutation(ties)[:_CONFIRMED]
    first, second = (torch.from_numpy(order[at]) for at in (chosen, chosen + 1))
    return all(
        torch.equal(
            tensor.index_select(0, first.to(tensor.device)).nan_to_num(),
            tensor.index_select(0, second.to(tensor.device)).nan_to_num(),
        )
        for tensor in tensors
    )


def read_repetition(readings: Readings, strides: Sequence[int], size: int, draw: np.random.Generator) -> str | None:
    """``repetition``, from rows that are read in pairs.

    Args:
        readings: Readings of the data set.
        strides: Distances at which rows may repeat.
        size: Length of the data set.
        draw: Chooses the rows.
    """
    for stride in strides:
        if _all_equal(readings, [(row, row + stride) for row in draw.permutation(size - stride)[:64].tolist()]):
            return f"rows occur again {stride} rows later"
    for times in range(2, _MAX_RUN + 1):
        firsts = times * draw.permutation(size // times)[:64]
        pairs = [(row, row + times - 1) for row in firsts.tolist()]
        apart = [(row, row - 1) for row in firsts.tolist() if row]
        if _all_equal(readings, pairs) and not any(readings[one] == readings[other] for one, other in apart[:8]):
            return f"each row occurs {times} times in succession"
    return None


def _all_equal(readings: Readings, pairs: list[tuple[int, int]]) -> bool:
    """Whether the pairs of rows are equal, with too many distinct rows for chance."""
    distinct: set[bytes] = set()
    for one, other in pairs:
        value = readings[one]
        if value is None or value != readings[other]:
            return False
        distinct.add(value)
        if len(distinct) >= MIN_DISTINCT_READ:
            return True
    return False
