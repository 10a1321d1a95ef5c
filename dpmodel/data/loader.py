"""Private loaders: from rows to batches, and from a plain ``DataLoader`` to a private one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, default_collate
from torch.utils.data import TensorDataset as TorchTensorDataset

from dpmodel.data.contents import collated, require_dense_tensors
from dpmodel.data.generators import Generators, secret_seed
from dpmodel.data.in_memory import InMemoryDataset
from dpmodel.data.row_choice import chosen_rows, drawn_from, draws_all, require_each_row_once
from dpmodel.data.stream import StreamRows, is_stream, streamed_by
from mechanisms.correlated.samplers import ArrivalOrderSampler
from mechanisms.engines.batch import all_tensors, map_tensors
from mechanisms.engines.device_copy import device_copy
from mechanisms.engines.state.python_state import PythonState
from mechanisms.sampling import SAMPLERS, Sampler
from monitors import checks
from monitors.errors import DataError, PrivacyWarning, UnsupportedLoaderError

Pair = tuple[Any, Any]


class StepRows(Protocol):
    """Gives the rows of each step: a sampler, or the part of one rank."""

    def rows(self, step: int) -> np.ndarray:
        """``int64`` row indices of ``step``."""
        ...


#: What a rebuilt ``DataLoader`` keeps for its worker processes.
WORKER_OPTIONS = ("worker_init_fn", "timeout", "prefetch_factor", "multiprocessing_context", "generator")


class RowFetcher(Dataset):
    """Turns an array of row indices into ``(inputs, targets)``; no row at all gives tensors of length 0.

    It uses the fastest of three ways with the same result: ``batch(rows)`` of an ``InMemoryDataset``, one
    ``index_select`` per tensor of a ``TensorDataset`` (both only with torch's ``collate_fn``), or the examples one by
    one through ``collate_fn``.

    The state of a ``collate_fn`` is restored after each batch: a running statistic, or the longest length so far, would
    carry something of one example to others.

    Args:
        dataset: Map-style data set.
        collate_fn: Makes a batch of a list of examples. Default: ``default_collate`` of torch.
    """

    def __init__(self, dataset: Any, collate_fn: Callable[[list[Any]], Any] = default_collate) -> None:
        self.dataset = dataset
        self.collate_fn = collate_fn
        self._state: PythonState | None = None
        self._told = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_state": None}  # recorded again in the other process

    @property
    def collates(self) -> bool:
        """Whether ``collate_fn`` makes the batches from single examples."""
        return not self._takes_rows(InMemoryDataset) and not self._takes_rows(TorchTensorDataset)

    @property
    def plain(self) -> bool:
        """Whether batches are rows of tensors, without user code in between."""
        kind = type(self.dataset)
        own = any(
            getattr(kind, name, None) is not getattr(InMemoryDataset, name) for name in ("batch", "transform_batch")
        )
        return self._takes_rows(TorchTensorDataset) or (self._takes_rows(InMemoryDataset) and not own)

    def _takes_rows(self, kind: type) -> bool:
        """Whether the rows of the data set can be read at once without bypassing user code."""
        own = getattr(type(self.dataset), "__getitem__", None) is not getattr(kind, "__getitem__", None)
        return isinstance(self.dataset, kind) and not own and self.collate_fn is default_collate

    def __getitem__(self, rows: np.ndarray) -> Pair:
        self.begin()
        index = torch.from_numpy(np.ascontiguousarray(rows, dtype=np.int64))
        return _pair_of(self._fetched(index), len(index))

    def begin(self) -> None:
        """Hook that is called before the rows of each batch are read."""

    def examples(self, rows: np.ndarray) -> list[Any]:
        """The examples of the data set, one by one."""
        return [self.dataset[int(row)] for row in rows]

    def collate(self, examples: list[Any]) -> Pair:
        """``(inputs, targets)`` of at least one example."""
        return _pair_of(self._collated(examples), len(examples))

    def _fetched(self, index: Tensor) -> Any:
        if self._takes_rows(InMemoryDataset):
            before = dict(vars(self.dataset))
            try:
                return self.dataset.batch(index)
            finally:  # a transform_batch may have kept something of the batch
                vars(self.dataset).clear()
                vars(self.dataset).update(before)
        if self._takes_rows(TorchTensorDataset):
            require_dense_tensors(self.dataset.tensors)
            return tuple(tensor.index_select(0, device_copy(index, tensor.device)) for tensor in self.dataset.tensors)
        if not len(index):
            return map_tensors(lambda tensor: tensor[:0], self._collated([self.dataset[0]]))
        return self._collated(self.examples(index.numpy()))

    def _collated(self, examples: list[Any]) -> Any:
        if self.collate_fn is default_collate:
            return collated(self.collate_fn, examples)
        if self._state is None:
            self._state = PythonState(self.collate_fn, by_value=True)
        try:
            return collated(self.collate_fn, examples)
        finally:
            changed = self._state.restore()
            if changed and not self._told:
                self._told = True
                warnings.warn(
                    f"the collate_fn changes {', '.join(changed[:3])}: this is restored after each batch, because it "
                    "would carry something of one example to others. Keep state that must advance in a callback",
                    PrivacyWarning,
                    stacklevel=2,
                )


class SecretRowFetcher(RowFetcher):
    """A ``RowFetcher`` for worker processes that gives all generators new, secret seeds before each batch.

    Augmentation then depends neither on the seed that ``DataLoader`` gives a worker, nor on a ``worker_init_fn`` or a
    data set that seeds generators.
    """

    def __init__(self, dataset: Any, collate_fn: Callable[[list[Any]], Any] = default_collate) -> None:
        super().__init__(dataset, collate_fn)
        self._generators: Generators | None = None

    def begin(self) -> None:
        """Give all generators new seeds."""
        if self._generators is None:  # made in the worker, for its copy of the data set
            self._generators = Generators(self.dataset, self.collate_fn)
        self._generators.renew()


def _pair_of(batch: Any, count: int) -> Pair:
    """The pair of a batch of ``count`` examples."""
    pair = dense_pair(batch)
    for tensor in all_tensors(pair):
        if tensor.shape[:1] != (count,):
            raise DataError(
                f"{count} rows were requested, but the data set or its collate_fn returned a tensor of shape "
                f"{tuple(tensor.shape)}: its first dimension must be the number of examples, each row once. Several "
                "views of an example are one example: stack them in an additional dimension"
            )
    return pair


def split_pair(batch: Any) -> Pair:
    """``(inputs, targets)`` of a batch: the last item is the target, several inputs stay a tuple.

    Raises:
        DataError: The batch has no target.
    """
    if not isinstance(batch, (tuple, list)) or len(batch) < 2:
        raise DataError(
            f"a batch must be (inputs, targets), got {type(batch).__name__}"
            + (f" of length {len(batch)}" if isinstance(batch, (tuple, list)) else "")
            + "; return both from the data set or the collate_fn"
        )
    return (batch[0] if len(batch) == 2 else tuple(batch[:-1])), batch[-1]


def dense_pair(batch: Any) -> Pair:
    """``split_pair`` for dense tensors only.

    Raises:
        DataError: The batch holds anything else, or no target.
    """
    pair = split_pair(batch)
    require_dense_tensors((*pair[0], pair[1]) if isinstance(pair[0], tuple) else pair)
    return pair


class PrivateLoader:
    """Batches for private training: rows of a data set, drawn by a sampler with a privacy statement.

    Iterating gives ``steps_per_epoch`` pairs ``(inputs, targets)`` drawn as in training; a Poisson batch may be empty.
    ``DPModel.fit`` calls ``batches`` instead, with its own sampler.

    Args:
        dataset: Map-style data set with a length, or ``StreamRows``.
        batch_size: Expected (Poisson) or exact (shuffle) examples per step.
        sampling: Name of the sampler; ``"fixed_order"`` for ``StreamRows``.
        num_examples_public: A public number that sets the sampling rate in place of the true one (``Sampler.rely_on``).
        collate_fn: As in ``DataLoader``.
        num_workers: Number of processes that fetch ahead; 0 fetches in this process. Rows are drawn in this process.
        pin_memory: As in ``DataLoader``, for CUDA.
        worker_options: Further arguments of the ``DataLoader`` of the workers, by name: ``WORKER_OPTIONS``.

    Raises:
        ValueError: The batch size exceeds the data set, or the sampling is unknown or needs the true number.

    Example:
        >>> data = TorchTensorDataset(torch.zeros(100, 3), torch.zeros(100))
        >>> loader = PrivateLoader(data, batch_size=10)
        >>> loader.num_examples, loader.steps_per_epoch
        (100, 10)
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        *,
        sampling: str = "poisson",
        num_examples_public: int | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
        worker_options: Mapping[str, Any] | None = None,
    ) -> None:
        checks.non_negative_int(num_workers=num_workers)
        self.dataset = dataset
        self.num_examples = _length(dataset)
        self.batch_size = int(batch_size)
        self.sampling, self.num_examples_public = sampling, num_examples_public
        self.fetcher = RowFetcher(dataset, collate_fn or default_collate)
        self.num_workers, self.pin_memory = num_workers, pin_memory
        self.worker_options = dict(worker_options or {})
        self.steps_per_epoch = self.make_sampler().steps_per_epoch

    def make_sampler(self, seed: int | None = None, first_partition: int = 0) -> Sampler:
        """A new sampler over the rows of this loader."""
        sampler: Sampler = self.build_sampler(self.num_examples, self.batch_size, seed, first_partition)
        if self.num_examples_public is not None:
            sampler.rely_on(self.num_examples_public)
        return sampler

    @property
    def build_sampler(self) -> Callable[..., Sampler]:
        """What builds the samplers of this loader: the class of its sampling, or that for a stream."""
        return SAMPLERS.get(self.sampling) if self.stream is None else ArrivalOrderSampler

    @property
    def stream(self) -> StreamRows | None:
        """The rows of a stream, which are read once and in order; None for a map-style data set."""
        return self.dataset if isinstance(self.dataset, StreamRows) else None

    @property
    def readable(self) -> int:
        """Number of first examples that can be read in any order before training; all but those of a stream."""
        return self.num_examples if self.stream is None else self.stream.readable

    @property
    def sources(self) -> tuple[Any, Any]:
        """The user's data set and ``collate_fn``."""
        return (self.dataset if self.stream is None else self.stream.stream), self.fetcher.collate_fn

    def batches(
        self,
        sampler: StepRows,
        first: int,
        steps: int,
        *,
        secret: bool = False,
        wrap: Callable[[RowFetcher], Dataset] = lambda fetcher: fetcher,
    ) -> Iterator[Any]:
        """Pairs for the steps ``first`` .. ``first + steps - 1`` of the sampler; pairs may be empty.

        Args:
            sampler: Gives the rows of each step.
            first: First step.
            steps: Number of steps.
            secret: Whether worker processes draw from secret seeds, whatever ``generator``, ``worker_init_fn`` and the
                data set say. In this process, that is up to the caller.
            wrap: Turns the fetcher of rows into the object that is indexed instead, with the rows of each step.
        """
        rows = _StepRows(sampler, first, steps)
        if self.stream is not None:
            self.stream.begin(steps * self.batch_size)
        if not self.num_workers:
            wrapped = wrap(self.fetcher)
            return (wrapped[step_rows] for step_rows in rows)
        fetcher, options = self.fetcher, self.worker_options
        if secret:
            fetcher = SecretRowFetcher(fetcher.dataset, fetcher.collate_fn)
            options = {**options, "generator": torch.Generator().manual_seed(secret_seed())}
        return iter(
            DataLoader(
                wrap(fetcher),
                sampler=rows,
                batch_size=None,
                num_workers=self.num_workers,
                pin_memory=self.pin_memory,
                **options,
            )
        )

    def check_read(self) -> None:
        """Raise if what was read of a stream shows that an example arrived more than once."""
        if self.stream is not None and self.stream.watch is not None:
            self.stream.watch.check(last=self.stream.complete)

    def told(self) -> str | None:
        """A private note about all examples of a stream that were read; None for nothing."""
        watch = None if self.stream is None else self.stream.watch
        return None if watch is None else watch.told()

    def example(self, count: int = 2) -> Pair:
        """The first ``count`` examples, for shapes and types; nothing of them may be released."""
        return self.fetcher[np.arange(min(count, self.readable))]

    def spread(self, count: int) -> Pair:
        """At most ``count`` examples from all over the readable data: neighbours may be of one class."""
        return self.fetcher[np.linspace(0, self.readable - 1, min(count, self.readable)).astype(int)]

    def in_order(self, batch_size: int | None = None) -> Iterator[Pair]:
        """The whole data set once, in order: for evaluation."""
        size = batch_size or self.batch_size
        return (self.fetcher[np.arange(i, min(i + size, self.num_examples))] for i in range(0, self.num_examples, size))

    def __iter__(self) -> Iterator[Pair]:
        return self.batches(self.make_sampler(), 0, self.steps_per_epoch)

    def __len__(self) -> int:
        return self.steps_per_epoch


class _StepRows:
    """Iterable of the rows of successive steps: a ``Sampler`` in the sense of ``DataLoader``."""

    def __init__(self, sampler: StepRows, first: int, steps: int) -> None:
        self.sampler, self.first, self.steps = sampler, first, steps

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.sampler.rows(self.first + index) for index in range(self.steps))

    def __len__(self) -> int:
        return self.steps


def poisson_loader(
    dataset: Any,
    batch_size: int,
    *,
    num_examples_public: int | None = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> PrivateLoader:
    """A loader whose batches are Poisson samples at rate ``batch_size / len(dataset)``.

    Args:
        dataset: Map-style data set with a length.
        batch_size: Expected examples per step, at most ``len(dataset)``.
        num_examples_public: A public number of examples, such as a rounded one, that takes the place of that length.
        collate_fn: As in ``DataLoader``.
        num_workers: Processes that fetch ahead.
        pin_memory: As in ``DataLoader``.

    Example:
        >>> poisson_loader(TorchTensorDataset(torch.zeros(50, 3), torch.zeros(50)), batch_size=5).sampling
        'poisson'
    """
    fetching: dict[str, Any] = {"collate_fn": collate_fn, "num_workers": num_workers, "pin_memory": pin_memory}
    return PrivateLoader(dataset, batch_size, num_examples_public=num_examples_public, **fetching)


def private_loader(loader: Any, sampling: str) -> tuple[PrivateLoader, bool]:
    """The private loader for the loader passed to ``fit``, and whether it was rebuilt.

    Args:
        loader: A ``PrivateLoader``, or a plain ``DataLoader`` (sequential, shuffled, or over the rows of a
            ``SubsetRandomSampler``, or of a stream), which is rebuilt.
        sampling: The model's sampling.

    Raises:
        UnsupportedLoaderError: The sampling of the loader has no privacy statement; says what to do.
    """
    if isinstance(loader, PrivateLoader):
        if loader.sampling != sampling:
            raise UnsupportedLoaderError(
                f"the loader samples with {loader.sampling!r} but the model was built with sampling={sampling!r}; "
                f"use DPModel(sampling={loader.sampling!r}) or a different loader"
            )
        require_each_row_once(loader.dataset)
        return loader, False
    if isinstance(loader, DataLoader) and is_stream(loader.dataset):
        rows = streamed_by(loader, sampling)
        assert loader.batch_size is not None
        return PrivateLoader(rows, loader.batch_size, sampling=sampling, collate_fn=loader.collate_fn), True
    _require_plain(loader)
    dataset = drawn_from(loader)
    require_each_row_once(dataset)
    rebuilt = PrivateLoader(
        dataset,
        loader.batch_size,
        sampling=sampling,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        worker_options={name: getattr(loader, name) for name in WORKER_OPTIONS} if loader.num_workers else None,
    )
    return rebuilt, True


def _length(dataset: Any) -> int:
    if is_stream(dataset) or not hasattr(dataset, "__len__"):
        raise UnsupportedLoaderError(
            f"{type(dataset).__name__} is a stream without a length, or without rows; private sampling needs a "
            "map-style data set (__getitem__ and __len__), because the number of examples enters the privacy "
            "statement. Pass DataLoader(stream, batch_size=...) to train one pass with sampling='fixed_order'"
        )
    if not len(dataset):
        raise DataError(f"the data set is empty: len({type(dataset).__name__}) is 0")
    return len(dataset)


def _require_plain(loader: Any) -> None:
    if not isinstance(loader, DataLoader):
        raise UnsupportedLoaderError(
            "a torch DataLoader or poisson_loader(...) is needed, which has a batch size, got "
            f"{type(loader).__name__}; pass DataLoader(dataset, batch_size=64), or "
            "DataLoader(TensorDataset(x, y), batch_size=64)"
        )
    if loader.batch_size is None and loader.batch_sampler is None:
        raise UnsupportedLoaderError("the DataLoader has batch_size=None; pass one, which sets the sampling rate")
    _length(loader.dataset)
    plain = draws_all(loader.sampler) or chosen_rows(loader.sampler) is not None
    if loader.batch_size is None or type(loader.batch_sampler) is not BatchSampler or not plain:
        sampler = loader.batch_sampler if plain else loader.sampler
        raise UnsupportedLoaderError(
            f"the DataLoader draws with {type(sampler).__name__}, which has no privacy statement here (weighted, "
            "distributed, with replacement or custom sampling). Pass DataLoader(dataset, batch_size=...), or "
            "poisson_loader(dataset, batch_size); to train on some rows, SubsetRandomSampler(rows) or "
            "Subset(dataset, rows)"
        )
