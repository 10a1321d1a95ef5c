"""Batches that mix their examples: an example must be the same beside any others."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from dpmodel.data.contents import collated, copied
from dpmodel.data.generators import Generators
from dpmodel.data.loader import Pair, PrivateLoader
from mechanisms.engines.batch import all_tensors, map_tensors
from monitors.errors import DataError

#: Batch sizes that are compared with single examples, and the largest, up to the batch size of the loader.
_SIZES = (2, 8)
_LARGEST = 64

#: Seconds after which no larger batch is tried.
_SECONDS = 0.5

#: Examples of each batch that are compared.
_COMPARED = 4

#: Further readings before a difference is no longer attributed to random augmentation.
_REREAD = 12

#: Size of the batch in which one example is replaced, and the seeds.
_REPLACED_IN = 8
_SEEDS = range(8)

#: Largest change that rounding may explain, relative to the largest entry: kernels depend on the batch size.
_ROUNDING = 1e-5

_MIXES = (
    "mixes the examples of a batch: one example would be in the clipped gradients of several, but the ledger accounts "
    "for one. Make each row of the batch from one example"
)


def require_unmixed_batches(loader: PrivateLoader, *, secret: bool = True) -> None:
    """Refuse a ``collate_fn``, ``batch`` or ``transform_batch`` that mixes the examples of a batch.

    Examples are compared alone and in batches of several sizes. Random mixing is found by replacing the last example of
    a batch under equal seeds: no other example may change.

    Of a stream, only the first examples are compared.

    Args:
        loader: Batches that torch or dpmodel cut from tensors are not checked.
        secret: Whether to choose the examples secretly; otherwise they are the same in each run.

    Raises:
        DataError: It mixes examples.
    """
    if loader.fetcher.plain or loader.readable < 2:
        return
    draw = np.random.default_rng(None if secret else 0)
    generators = Generators(loader.dataset, loader.fetcher.collate_fn)
    maker = "the collate_fn" if loader.fetcher.collates else f"{type(loader.dataset).__name__}"
    with generators.preserved():
        started = time.perf_counter()
        for size in sorted({*_SIZES, min(_LARGEST, loader.batch_size)}):
            if time.perf_counter() - started > _SECONDS:
                break
            if not _same_alone(loader, draw.permutation(loader.readable)[:size], draw):
                raise DataError(f"{maker} {_MIXES}")
        if not _same_beside_another(loader, draw.permutation(loader.readable)[: _REPLACED_IN + 1], generators):
            raise DataError(f"{maker} {_MIXES}")


def _same_alone(loader: PrivateLoader, rows: np.ndarray, draw: np.random.Generator) -> bool:
    fetcher = loader.fetcher
    together = fetcher[rows]
    for place in draw.permutation(len(rows))[:_COMPARED].tolist():
        alone, beside = fetcher[rows[place : place + 1]], _row(together, place)
        if _shapes(alone) != _shapes(beside) or _close(alone, beside) or _holds(together, len(rows), alone):
            continue  # padding is judged by its gradients (Collation), and a collate_fn may sort
        if all(
            _close(alone, fetcher[rows[place : place + 1]]) and _close(beside, _row(fetcher[rows], place))
            for _ in range(_REREAD)
        ):
            return False
    return True


def _same_beside_another(loader: PrivateLoader, rows: np.ndarray, generators: Generators) -> bool:
    """Whether replacing the last example of a batch changes no other example, under equal seeds."""
    if len(rows) < 3:
        return True
    make = _maker(loader, rows)
    count = len(rows) - 1
    first, second = list(range(count)), [*range(count - 1), count]
    for seed in _SEEDS:
        pairs = []
        for chosen in (first, second, first, second):
            generators.seed(seed)
            pairs.append(make(chosen))
        if len({str(_shapes(pair)) for pair in pairs}) > 1:
            return True
        one, other, one_again, other_again = pairs
        if not _close(one, one_again) or not _close(other, other_again):
            return True  # randomness that no seed reaches
        changed = sum(not _close(_row(one, place), _row(other, place)) for place in range(count))
        if changed > 1 and sum(not _holds(other, count, _row(one, place)) for place in range(count)) > 1:
            return False
    return True


def _maker(loader: PrivateLoader, rows: np.ndarray) -> Callable[[list[int]], Pair]:
    """Makes a batch of some of ``rows``; for a ``collate_fn``, the examples are read once."""
    fetcher = loader.fetcher
    if not fetcher.collates:
        return lambda chosen: fetcher[rows[chosen]]
    examples = [loader.dataset[int(row)] for row in rows]

    def collate(chosen: list[int]) -> Any:
        taken = [examples[place] for place in chosen]
        return collated(fetcher.collate_fn, copied(taken))

    return collate


def _row(pair: Any, place: int) -> Any:
    return map_tensors(lambda tensor: tensor[place : place + 1], pair)


def _holds(pair: Any, count: int, row: Any) -> bool:
    return any(_close(_row(pair, place), row) for place in range(count))


def _shapes(pair: Any) -> list[torch.Size]:
    return [tensor.shape for tensor in all_tensors(pair)]


def _close(left: Any, right: Any) -> bool:
    return all(_close_tensors(a, b) for a, b in zip(all_tensors(left), all_tensors(right), strict=True))


def _close_tensors(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    allowed = max(_ROUNDING, 8 * torch.finfo(one.dtype).eps)
    one, other = one.double().nan_to_num(), other.double().nan_to_num()
    return not one.numel() or bool((one - other).abs().max() <= allowed * one.abs().max().clamp(min=1e-300))
