"""Specimens of batches with a new shape: some of their examples, collated alone."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten
from torch.utils.data import Dataset, default_collate

from dpmodel.data.contents import copied
from dpmodel.data.generators import Generators, secret_seed
from dpmodel.data.loader import Pair, RowFetcher
from mechanisms.engines.batch import all_tensors, map_tensors
from monitors.errors import DataError

#: Examples of a batch that are collated alone: the shortest, the longest, and secretly chosen ones.
SPECIMENS = 4

#: Batches of one shape without a padded example, after which only some examples of such batches are measured.
UNPADDED = 16

#: Seeds below this suit every kind of generator.
_SEEDS = 2**32


@dataclass(frozen=True)
class Specimen:
    """One example in a batch and alone.

    Args:
        beside: A batch of one, cut out of a larger batch.
        alone: A batch of one, collated under the same seeds.
        steady: Whether a different seed gives the same.
    """

    beside: Pair
    alone: Pair
    steady: bool

    @property
    def padded(self) -> bool:
        """Whether its shape in the batch differs from its shape alone."""
        return row_shapes(self.beside) != row_shapes(self.alone)


class Drawn(NamedTuple):
    """A drawn batch.

    Args:
        x: Inputs.
        y: Targets.
        specimens: Some of its examples; empty if the shape of the batch is within the range seen before.
    """

    x: Any
    y: Any
    specimens: list[Specimen]


@dataclass
class ShapeRange:
    """Smallest and largest sizes of the rows of batches, by dimension.

    Example:
        >>> seen = ShapeRange()
        >>> seen.include(torch.zeros(2, 5)), seen.include(torch.zeros(3, 9))
        (None, None)
        >>> seen.covers(torch.zeros(1, 7)), seen.covers(torch.zeros(1, 4)), seen.covers(torch.zeros(1, 10))
        (True, False, False)
    """

    _ends: dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    _unpadded: Counter[bytes] = field(default_factory=Counter)

    def covers(self, batch: Any) -> bool:
        """Whether every dimension of the rows of ``batch`` is within the range."""
        kind, sizes = _sizes(batch)
        if kind not in self._ends:
            return False
        low, high = self._ends[kind]
        return bool((low <= sizes).all() and (sizes <= high).all())

    def include_compared(self, batch: Any, specimens: Sequence[Specimen]) -> None:
        """Extend the range to the rows of ``batch``, if one of its specimens shows the effect of padding to this shape.

        A long example that is alone in its batch does not show its effect on shorter ones, however often it is drawn:
        such a shape is never included.
        """
        if any(specimen.padded for specimen in specimens):
            self.include(batch)
        else:
            self._unpadded[_sizes(batch)[1].tobytes()] += 1

    def often_unpadded(self, batch: Any) -> bool:
        """Whether many batches of this shape had no padded specimen."""
        return self._unpadded[_sizes(batch)[1].tobytes()] >= UNPADDED

    def include(self, batch: Any) -> None:
        """Extend the range to the rows of ``batch``."""
        kind, sizes = _sizes(batch)
        low, high = self._ends.get(kind, (sizes, sizes))
        self._ends[kind] = np.minimum(low, sizes), np.maximum(high, sizes)


class SpecimenFetcher(Dataset):
    """Fetches batches like ``fetcher``, and takes specimens of batches with a new shape.

    Padding depends on the other examples of a batch, so it must be checked while the examples are still separate: in
    the process that reads them.

    Args:
        fetcher: Reads and collates rows.
        seen: Shapes that need no specimens.
        secret: Whether to choose the specimens secretly.
    """

    def __init__(self, fetcher: RowFetcher, seen: ShapeRange, *, secret: bool) -> None:
        self._fetcher = fetcher
        self._seen = copy.deepcopy(seen)
        self._secret = secret

    @property
    def dataset(self) -> Any:
        """The data set whose rows are read; a ``worker_init_fn`` may use it."""
        return self._fetcher.dataset

    def __getitem__(self, rows: np.ndarray) -> Drawn:
        fetcher = self._fetcher
        if not fetcher.collates:
            return self._of_own_batches(rows)
        # torch's default_collate takes examples of one shape only.
        if fetcher.collate_fn is default_collate or not len(rows):
            return Drawn(*fetcher[rows], [])
        fetcher.begin()
        examples = fetcher.examples(rows)
        kept = copied(examples)
        pair = fetcher.collate(examples)
        return self._drawn(pair, kept, fetcher.collate, alike=_alike(kept))

    def _of_own_batches(self, rows: np.ndarray) -> Drawn:
        """A batch of a data set that makes whole batches itself, and may cut or pad them."""
        alike = self._fetcher.plain or len(rows) < 2
        return self._drawn(self._fetcher[rows], list(rows), lambda some: self._fetcher[np.array(some)], alike=alike)

    def _drawn(self, pair: Pair, examples: list[Any], collate: Callable[[list[Any]], Pair], *, alike: bool) -> Drawn:
        if alike or self._seen.covers(pair):
            return Drawn(*pair, [])
        specimens = self._specimens(examples, collate, some=self._seen.often_unpadded(pair))
        self._seen.include_compared(pair, specimens)
        return Drawn(*pair, specimens)

    def _specimens(self, examples: list[Any], collate: Callable[[list[Any]], Pair], *, some: bool) -> list[Specimen]:
        """Specimens of the shortest, the longest and secretly chosen examples; with ``some``, of the latter only."""
        generators = Generators(self._fetcher.collate_fn, *([] if self._fetcher.collates else [self._fetcher.dataset]))
        draw = np.random.default_rng(None if self._secret else 0)
        with generators.preserved():
            seed = secret_seed() % _SEEDS if self._secret else 0

            def collated(some: list[Any], shift: int = 0) -> Pair:
                generators.seed((seed + shift) % _SEEDS)
                try:
                    return collate(copied(some))
                except Exception as error:
                    raise DataError(
                        f"the collate_fn takes a batch, but fails for {len(some)} of its examples collated again "
                        f"({type(error).__name__}: {error}). It must accept a single example, and must not write "
                        "to its examples"
                    ) from error

            measured: list[int] = []
            if not some:
                entries = [sum(tensor.numel() for tensor in all_tensors(collated([one]))) for one in examples]
                measured = np.argsort(entries, kind="stable")[[0, -1]].tolist()
            places = dict.fromkeys((*measured, *draw.permutation(len(examples))[:SPECIMENS].tolist()))
            together = collated(examples)
            found = []
            for place in [*places][:SPECIMENS]:
                alone, other = (collated([examples[place]], shift) for shift in (0, 1))
                found.append(Specimen(_row_of(together, place, alone), alone, equal(alone, other)))
        return found


def _alike(examples: list[Any]) -> bool:
    """Whether all examples are known to have one size, so that none is padded."""
    sizes = [_size_of(example) for example in examples]
    return len(examples) == 1 or (None not in sizes and len(set(map(str, sizes))) == 1)


def _size_of(example: Any) -> tuple[Any, ...] | None:
    """The structure of an example with the sizes of its tensors; None if unknown.

    Strings, numbers and names do not show the sizes of the tensors that the ``collate_fn`` makes of them.
    """
    leaves, structure = tree_flatten(example)
    arrays = [leaf for leaf in leaves if isinstance(leaf, (Tensor, np.ndarray))]
    numbers = [leaf for leaf in leaves if leaf is None or isinstance(leaf, (bool, int, float, np.generic))]
    if not arrays or len(arrays) + len(numbers) < len(leaves):
        return None
    return structure, *(tuple(leaf.shape) for leaf in arrays)


def one_row(pair: Pair, place: int) -> Any:
    """The example at ``place`` as a batch of one."""
    return map_tensors(lambda tensor: tensor[place : place + 1].clone(), pair)


def cut(nest: Any, like: Any) -> Any:
    """``nest`` with its tensors cut to the sizes of those of ``like``."""
    sizes = iter([tensor.shape for tensor in all_tensors(like)])
    return map_tensors(lambda tensor: tensor[tuple(map(slice, next(sizes)))], nest)


def row_shapes(pair: Any) -> list[torch.Size]:
    """Shapes of the tensors of a batch, without the dimension that counts examples."""
    return [tensor.shape[1:] for tensor in all_tensors(pair)]


def equal(left: Any, right: Any) -> bool:
    """Whether two batches hold the same numbers in the same shapes."""
    pairs = list(zip(all_tensors(left), all_tensors(right), strict=True))
    return all(a.shape == b.shape and torch.equal(_numbers(a), _numbers(b)) for a, b in pairs)


def _row_of(together: Pair, place: int, alone: Pair) -> Any:
    """The row of a batch that holds an example: the row at its place, unless the ``collate_fn`` sorts."""
    count = all_tensors(together)[0].shape[0]
    for row in (place, *range(count)):
        found = one_row(together, row)
        if equal(cut(found, alone), alone):
            return found
    return one_row(together, place)


def _numbers(value: Tensor) -> Tensor:
    return torch.nan_to_num(value.float())


def _sizes(batch: Any) -> tuple[tuple[int, ...], np.ndarray]:
    """Numbers of dimensions of the tensors of a batch, and their sizes without the first dimension."""
    shapes = row_shapes(batch)
    return tuple(map(len, shapes)), np.array([size for shape in shapes for size in shape], dtype=np.int64)
