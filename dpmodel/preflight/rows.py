"""Data sets in which one record counts in several examples, or that remember what they have read."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset, TensorDataset

from dpmodel.data.in_memory import InMemoryDataset
from dpmodel.data.loader import PrivateLoader
from dpmodel.data.row_choice import overlap_in_memory
from dpmodel.preflight.order import depends_on_order
from dpmodel.preflight.readings import Readings, holders
from dpmodel.preflight.repeats import confirmed, equal_rows, read_repetition, repetition, row_hashes
from dpmodel.preflight.sharing import Sharing
from dpmodel.preflight.stores import SMALLEST, watched
from monitors.errors import DataError

#: Examples needed to see whether one depends on which of two others was read before it.
_FEWEST = 3

#: Largest number of rows that are read; a smaller data set is read completely if time allows.
MOST_READ = 2_000

#: Examples whose neighbours, and the examples at likely distances from them, are read first.
_BASES = 8
_MOST_STRIDES = 12
_DIVISORS = range(2, 9)


def require_separate_rows(loader: PrivateLoader, *, secret: bool = True) -> str | None:
    """Refuse a data set in which one record counts in several examples, as far as this can be seen.

    Rows in memory are compared with each other. In other data sets, a few hundred to ``MOST_READ`` examples
    are read under equal seeds, and the stored rows that each example reads are recorded. The data set and all
    generators are restored.

    Args:
        loader: Its data set is read.
        secret: Whether to choose the examples secretly; otherwise they are the same in each run.

    Returns:
        A private note about equal rows, for the user who trains; or None.

    Raises:
        DataError: A wrapper repeats rows, or several examples depend on one stored row; says which.
    """
    require_rows_apart(loader.dataset)
    if loader.num_examples < SMALLEST:
        return None
    tensors = _plain_tensors(loader)
    if tensors is not None:
        hashes = row_hashes(tensors)
        repeated = repetition(hashes)
        if repeated is not None and confirmed(tensors, hashes):
            _refuse_repetition(loader.dataset, repeated)
        return _told(equal_rows(hashes), loader.num_examples)
    draw = np.random.default_rng(None if secret else 0)
    readings = Readings(loader)
    with readings.preserved():
        return _require_separate_examples(loader, readings, draw)


def require_rows_apart(dataset: Any) -> None:
    """Refuse tensors whose rows overlap in memory.

    Raises:
        DataError: They do; says how far apart.
    """
    apart = overlap_in_memory(dataset)
    if apart is not None:
        raise DataError(
            f"{type(dataset).__name__} holds rows that overlap: rows {apart} apart share memory, as windows of a "
            "series do. One record would move the gradients of several examples, each by up to the norm bound, but the "
            "ledger accounts for one. Begin each window where the one before ends, or choose rows that do not overlap "
            "(Subset)"
        )


def require_no_memory(loader: PrivateLoader, *, secret: bool) -> None:
    """Refuse a data set whose items depend on what was read before, as far as this can be seen.

    Call it before anything else is read: a running maximum settles soon.

    Args:
        loader: The loader of the training.
        secret: Whether to choose the examples secretly.

    Raises:
        DataError: An item changes with the item read before it.
    """
    if loader.fetcher.plain or loader.num_examples < _FEWEST:
        return
    ordered = depends_on_order(loader.dataset, np.random.default_rng(None if secret else 0))
    if ordered is not None:
        raise DataError(
            f"{type(loader.dataset).__name__} remembers what it has read: {ordered}. One record would move the "
            "gradients of later examples, which the ledger does not account for. Let __getitem__ depend on its index "
            "only"
        )


def _require_separate_examples(loader: PrivateLoader, readings: Readings, draw: np.random.Generator) -> str | None:
    size = loader.num_examples
    strides = _strides(loader.dataset, size)
    kind = type(loader.dataset).__name__
    with watched(loader.dataset) as watch:
        shared = Sharing(readings, watch, draw).find(_order(size, strides, draw), size)
    if shared is not None:
        raise DataError(
            f"{kind} mixes its rows: {shared}. One record would move the gradients of several examples, each by up to "
            "the norm bound, but the ledger accounts for one. Let example i depend on row i only (windows must not "
            "overlap). Keep public tables outside of the attributes of the data set, for example in a module-level "
            "variable or in the network"
        )
    known = readings.rows
    if len(known) == size:
        hashes = np.array([int.from_bytes(readings[row] or b"", "little") % 2**63 for row in range(size)])
        repeated = repetition(hashes)
        equal = equal_rows(hashes)
    else:
        repeated = read_repetition(readings, strides, size, draw)
        equal = len(known) - len({readings[row] for row in known})
    if repeated is not None:
        _refuse_repetition(loader.dataset, repeated)
    return _told(equal, len(known))


def _plain_tensors(loader: PrivateLoader) -> list[Any] | None:
    """The tensors whose rows are the examples; None if user code makes the examples."""
    dataset = loader.dataset
    if loader.fetcher.collates or type(dataset).__len__ not in (TensorDataset.__len__, InMemoryDataset.__len__):
        return None
    return [dataset.x, dataset.y] if isinstance(dataset, InMemoryDataset) else list(dataset.tensors)


def _strides(dataset: Any, size: int) -> list[int]:
    """Distances at which a wrapper may repeat a row: lengths of what it holds, and fractions of its own length."""
    inner = holders(dataset)
    lengths = [len(holder) for holder in inner if hasattr(type(holder), "__len__")]
    ends = chain.from_iterable(holder.cumulative_sizes for holder in inner if isinstance(holder, ConcatDataset))
    stored = (len(part) for holder in inner for part in vars(holder).values() if hasattr(part, "__len__"))
    parts = (size // divisor for divisor in _DIVISORS if size % divisor == 0)
    return list(dict.fromkeys(length for length in chain(lengths, ends, stored, parts) if 1 < length < size))[
        :_MOST_STRIDES
    ]


def _order(size: int, strides: list[int], draw: np.random.Generator) -> list[int]:
    """The rows to read: some with their neighbours and the rows at likely distances, then random ones."""
    shuffled = draw.permutation(size)[:MOST_READ].tolist()
    first = (
        row
        for base in shuffled[:_BASES]
        for row in (base, base + 1, *(base + s if base + s < size else base - s for s in strides))
    )
    return list(dict.fromkeys(row for row in chain(first, shuffled) if 0 <= row < size))


def _refuse_repetition(dataset: Any, repeated: str) -> None:
    raise DataError(
        f"{type(dataset).__name__} holds its rows more than once: {repeated}. A record would be drawn and would count "
        "several times, but the ledger accounts for one. Include each row once (more epochs read it more often; to "
        "weight a class, weight its loss)"
    )


def _told(equal: int, among: int) -> str | None:
    if not equal:
        return None
    return (
        f"{equal:,} of {among:,} compared rows equal some other row. If they are records of one person, the epsilon of "
        "that person is larger, as for a group"
    )
