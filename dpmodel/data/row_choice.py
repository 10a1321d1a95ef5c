"""The rows that subsets and samplers choose, and whether two choices share rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
)

from dpmodel.data.held_rows import HeldRows
from dpmodel.data.stream import read_from
from monitors.errors import UnsupportedLoaderError

#: Rows further apart are not compared for memory that they share.
_MOST_APART = 64


def require_held_out(valid_loader: Any, train_dataset: Any) -> None:
    """Refuse the training data as validation data.

    The same data set is recognised, and so are parts of it that share rows (a ``Subset``, or the rows of a
    ``SubsetRandomSampler``), tensors and arrays in the same memory, and lists with the same objects; see ``HeldRows``.
    Copies of the training data are not recognised, nor are rows that both choose by code of their own.

    Args:
        valid_loader: The validation data; None for no validation.
        train_dataset: The training data.

    Raises:
        UnsupportedLoaderError: They are the training data, or share rows with them.
    """
    held_out = drawn_from(valid_loader)
    if valid_loader is not None and HeldRows.of(held_out).meets(HeldRows.of(train_dataset)):
        raise UnsupportedLoaderError(
            "valid_loader holds the training data: their metrics, and any choice that depends on these, would be "
            "released without noise. Pass held-out data; evaluate shows how well the training data are fitted"
        )


def drawn_from(loader: Any) -> Any:
    """The data set that ``loader`` reads: a ``Subset`` if its sampler is known to choose rows, otherwise all of it.

    Args:
        loader: A loader, or data, which are returned unchanged.

    Example:
        >>> data = torch.utils.data.TensorDataset(torch.zeros(10, 3))
        >>> len(drawn_from(DataLoader(data, sampler=SubsetRandomSampler([1, 2]))))
        2
    """
    dataset = loader if isinstance(loader, Dataset) else getattr(loader, "dataset", loader)
    if not isinstance(loader, DataLoader):
        return dataset
    batches = loader.batch_sampler
    rows = chosen_rows(loader.sampler if batches is None else batches)
    return dataset if rows is None else Subset(dataset, rows)


def chosen_rows(sampler: Any) -> list[int] | None:
    """The rows that a sampler draws in each pass; None if these are unknown or all rows."""
    if type(sampler) is BatchSampler:
        return chosen_rows(sampler.sampler)
    rows = sampler.indices if type(sampler) is SubsetRandomSampler else sampler
    return [int(row) for row in rows] if isinstance(rows, (list, tuple, range, np.ndarray, Tensor)) else None


def draws_all(sampler: Any) -> bool:
    """Whether a sampler draws each row of its data once in each pass."""
    once = type(sampler) is RandomSampler and not sampler.replacement
    return type(sampler) is SequentialSampler or (once and sampler.num_samples == len(sampler.data_source))


def _share_rows(one: Any, other: Any) -> bool:
    (one, some), (other, others) = _rows_of(one), _rows_of(other)
    if one is other:
        return some is None or others is None or bool(np.intersect1d(some, others).size)
    first, second = _inputs(one), _inputs(other)
    apart = None if first is None or second is None else _rows_apart(first, second)
    if first is None or second is None or apart is None:
        return False
    some = np.arange(len(first)) if some is None else some
    others = np.arange(len(second)) if others is None else others
    return bool(np.intersect1d(some, others + apart).size)


def require_each_row_once(dataset: Any) -> None:
    """Refuse a data set that holds a row more than once.

    Raises:
        UnsupportedLoaderError: A ``Subset``, or parts of a ``ConcatDataset``, repeat rows.
    """
    parts = _parts(dataset)
    for at, part in enumerate(parts):
        rows = _rows_of(part)[1]
        repeated = rows is not None and len(np.unique(rows)) < len(rows)
        if repeated or any(_share_rows(part, other) for other in parts[:at]):
            raise UnsupportedLoaderError(
                f"{type(dataset).__name__} holds rows of its data more than once: an example would be drawn and would "
                "count several times, but the ledger accounts for one. Include each row once (to weight a class, "
                "weight its loss)"
            )


def overlap_in_memory(dataset: Any) -> int | None:
    """How many rows apart two chosen rows lie that share memory, as windows of a series do; None if none are found.

    Rows up to ``_MOST_APART`` rows apart of the tensors of a data set are compared. Rows that are one and the same, as
    ``expand`` makes them, are not meant.

    Example:
        >>> windows = torch.arange(20).unfold(0, 4, 2)
        >>> overlap_in_memory(torch.utils.data.TensorDataset(windows))
        1
        >>> overlap_in_memory(Subset(torch.utils.data.TensorDataset(windows), [0, 2, 4])) is None
        True
    """
    for part in _parts(dataset):
        inner, rows = _rows_of(part)
        for tensor in getattr(inner, "tensors", ()):
            for apart in _overlaps(tensor) if isinstance(tensor, Tensor) else ():
                if rows is None or np.intersect1d(rows, rows + apart).size:
                    return apart
    return None


def _overlaps(tensor: Tensor) -> list[int]:
    """The distances between rows of a tensor at which they share memory."""
    if tensor.layout is not torch.strided or tensor.is_nested or not tensor.numel():
        return []
    step, *strides = tensor.stride()
    sizes = tensor.shape[1:]
    extent = sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    if not 0 < step <= extent:
        return []
    places = np.zeros(1, dtype=np.int64)
    for size, stride in zip(sizes, strides, strict=True):
        places = np.unique(np.add.outer(places, stride * np.arange(size)))
    most = min(len(tensor) - 1, extent // step, _MOST_APART)
    return [apart for apart in range(1, most + 1) if np.isin(places + apart * step, places).any()]


def _parts(dataset: Any) -> list[Any]:
    """The data sets that ``dataset`` concatenates."""
    if not isinstance(dataset, ConcatDataset):
        return [dataset]
    return [part for inner in dataset.datasets for part in _parts(inner)]


def _rows_of(dataset: Any) -> tuple[Any, np.ndarray | None]:
    """The data set under all subsets, and the rows that they choose; None for all rows."""
    rows: np.ndarray | None = None
    while isinstance(dataset, Subset):
        chosen = np.asarray(dataset.indices)
        if hasattr(dataset.dataset, "__len__"):
            chosen = chosen % len(dataset.dataset)  # negative rows count from the end
        rows = chosen if rows is None else chosen[rows]
        dataset = dataset.dataset
    return read_from(dataset), rows


def _inputs(dataset: Any) -> Tensor | None:
    """The first tensor of the data, if they are in memory."""
    tensors = getattr(dataset, "tensors", dataset if isinstance(dataset, (tuple, list)) else ())
    first = next(iter(tensors), None)
    first = torch.from_numpy(first) if _is_memory(first) else first
    return first if isinstance(first, Tensor) and first.layout is torch.strided and first.numel() else None


def _is_memory(value: Any) -> bool:
    """Whether torch can share the memory of an array."""
    positive = isinstance(value, np.ndarray) and all(stride >= 0 for stride in value.strides)
    return positive and value.dtype.kind in "biuf" and value.flags.writeable


def _rows_apart(first: Tensor, second: Tensor) -> int | None:
    """The row of ``first`` at which ``second`` begins in memory; None if they share no row."""
    if first.device != second.device or first.stride(0) != second.stride(0):
        return None
    step = first.stride(0) * first.element_size()
    apart = second.data_ptr() - first.data_ptr()
    if not step:
        return None if apart else 0
    return None if apart % step else apart // step
