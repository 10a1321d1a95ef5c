"""Streams: data that are read once, in the order in which they arrive."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Protocol

from torch.utils.data import DataLoader, IterableDataset

from dpmodel.data.contents import copied
from monitors import checks
from monitors.errors import CheckpointError, DataError, DistributedError, UnsupportedLoaderError

#: First examples that are read ahead for the checks before training; they are then the first to be trained on.
PEEKED = 64

#: The attribute of a stream that holds what was read of it.
_ATTRIBUTE = "_dpmodel_rows"


class Stream(IterableDataset):
    """The first ``num_examples`` examples of a stream whose length torch does not know.

    Args:
        dataset: An ``IterableDataset`` or any other iterable of examples.
        num_examples: Their number. It is public and enters the privacy statement, so it must not be counted on the
            private data. A stream that ends earlier ends the training with an error; examples beyond are not read.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> examples = ((float(number), number % 2) for number in range(100))
        >>> len(Stream(examples, num_examples=50)), [x for x, _ in Stream(examples, num_examples=3)]
        (50, [0.0, 1.0, 2.0])
    """

    def __init__(self, dataset: Iterable[Any], num_examples: int) -> None:
        checks.positive_int(num_examples=num_examples)
        if not isinstance(dataset, Iterable):
            raise TypeError(f"dataset must be an iterable of examples, got {type(dataset).__name__}")
        self.dataset = dataset
        self.num_examples = int(num_examples)

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self.dataset), self.num_examples)

    def __len__(self) -> int:
        return self.num_examples


class Watch(Protocol):
    """Sees each example of a stream once, as it arrives."""

    def add(self, example: Any) -> None:
        """See the next example."""
        ...

    def check(self, *, last: bool) -> None:
        """Raise if something is wrong with the examples so far; ``last`` if no other follows."""
        ...

    def told(self) -> str | None:
        """A private note about all of them, for the user who trains."""
        ...


class StreamRows:
    """A stream as the rows of one pass, numbered as they arrive.

    Guarantees: the stream is iterated once, and each example is given to the training at most once, in order. Before
    the training begins, only the first ``readable`` examples are read, for the checks, which get copies. The training
    then begins with these. Nothing else of the stream is held in memory, and examples after the last step are not read.
    A training that is refused leaves the examples in place for the next.

    Args:
        stream: An ``IterableDataset`` with a length.

    Attributes:
        watch: Sees the examples that arrive after the first ``readable`` ones; None for nothing.

    Example:
        >>> rows = StreamRows(Stream("abcdef", num_examples=5))
        >>> rows[2], rows[0], len(rows)
        ('c', 'a', 5)
        >>> rows.begin(4)
        >>> [rows[row] for row in range(4)]
        ['a', 'b', 'c', 'd']
        >>> rows[0]
        Traceback (most recent call last):
            ...
        monitors.errors.DataError: example 0 of a stream was requested, but only example 4 can be read ...
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.watch: Watch | None = None
        self._size = _length_of(stream)
        self._iterator: Iterator[Any] | None = None
        self._first: deque[Any] = deque()
        self._arrived = 0
        self._next: int | None = None
        self._end = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # a copy of the stream begins anew, and is iterated by itself

    @classmethod
    def of(cls, stream: Any) -> StreamRows:
        """The rows of ``stream``: those that an earlier, refused training has begun to read, or new ones."""
        found = vars(stream).get(_ATTRIBUTE)
        if not isinstance(found, cls) or found.stream is not stream or not found._arrived:
            found = vars(stream)[_ATTRIBUTE] = cls(stream)
        found._size = _length_of(stream)
        if not found._next:  # a training that took no example has not begun
            found._next = None
        return found

    def __len__(self) -> int:
        return self._size

    @property
    def readable(self) -> int:
        """Number of first examples that can be read in any order, until the training begins."""
        return min(PEEKED, self._size)

    @property
    def begun(self) -> bool:
        """Whether a training has begun to take examples."""
        return self._next is not None

    @property
    def complete(self) -> bool:
        """Whether the training has read its last example."""
        return self._next == self._end

    def peek(self) -> None:
        """Read the first ``readable`` examples.

        Raises:
            DataError: The stream has fewer.
        """
        while not self.begun and self._arrived < self.readable:
            self._first.append(self._arrive())

    def begin(self, count: int) -> None:
        """The training begins, and will read ``count`` examples.

        Raises:
            UnsupportedLoaderError: A training has begun before.
        """
        self.require_unread()
        self._next, self._end = 0, count

    def require_unread(self) -> None:
        """Refuse a stream that a training has read.

        Raises:
            UnsupportedLoaderError: A training has begun before.
        """
        if self.begun:
            raise UnsupportedLoaderError(
                f"a training has already read {self._next} examples of this {type(self.stream).__name__}: a second one "
                "would read examples again, or continue a pass that is over. Pass a new object for other examples, "
                "which are charged in addition, or use a map-style data set for several passes"
            )

    def __getitem__(self, row: int) -> Any:
        if not self.begun:
            self.peek()
            return _copy(self._first[row])
        if row != self._next or self.complete:
            raise DataError(
                f"example {row} of a stream was requested, but only example {self._next} can be read now: each is read "
                "once, in the order of arrival"
            )
        example = self._first.popleft() if self._first else self._arrive()
        self._next += 1
        if self.complete:
            self._iterator = None
            self._first.clear()
        return example

    def _arrive(self) -> Any:
        if self._iterator is None:
            self._iterator = iter(self.stream)
        try:
            example = next(self._iterator)
        except StopIteration:
            raise DataError(
                f"the stream {type(self.stream).__name__} ended after {self._arrived:,} examples, but its length is "
                f"{self._size:,}. Steps that were taken are charged and kept; the others have no examples, and are not "
                "taken. State a number of examples that arrive"
            ) from None
        self._arrived += 1
        if self.watch is not None:
            self.watch.add(example)
        return example


def is_stream(dataset: Any) -> bool:
    """Whether ``dataset`` is read by iterating over it."""
    return isinstance(dataset, IterableDataset)


def streamed_by(loader: DataLoader, sampling: str) -> StreamRows:
    """The rows of the stream that ``loader`` reads.

    Args:
        loader: A ``DataLoader`` of an ``IterableDataset``.
        sampling: The model's sampling.

    Raises:
        UnsupportedLoaderError: The sampling draws examples by their number, the number of examples is not stated, or
            the loader has worker processes.
    """
    kind = type(loader.dataset).__name__
    if sampling != "fixed_order":
        raise UnsupportedLoaderError(
            f"{kind} is a stream, from which sampling={sampling!r} cannot draw. Train one pass in the order of "
            "arrival: DPModel(..., sampling='fixed_order').fit(loader, epochs=1). A map-style data set (__getitem__ "
            "and __len__) allows every sampling, and Poisson samples need less noise"
        )
    if loader.batch_size is None:
        raise UnsupportedLoaderError(
            "the DataLoader has batch_size=None; pass a batch_size: dpmodel makes the batches from single examples"
        )
    if loader.num_workers:
        raise UnsupportedLoaderError(
            f"the DataLoader reads the stream {kind} with num_workers={loader.num_workers}: workers that iterate over "
            "all of it repeat examples, and the order of arrival would depend on them. Use num_workers=0, and let the "
            "stream itself read ahead if that is too slow"
        )
    return StreamRows.of(loader.dataset)


def require_one_pass(rows: Any, epochs: int, *, processes: int = 1, resumed: bool = False) -> None:
    """Refuse a training on a stream that is not one pass in this process; other data sets are not checked.

    Args:
        rows: What a private loader reads.
        epochs: Epochs.
        processes: Number of processes that train together.
        resumed: Whether the training is resumed from a saved state.

    Raises:
        UnsupportedLoaderError: There are several epochs, or a training has read the stream.
        DistributedError: There are several processes.
        CheckpointError: The training is resumed.
    """
    if not isinstance(rows, StreamRows):
        return
    kind = type(rows.stream).__name__
    if epochs > 1:
        raise UnsupportedLoaderError(
            f"{kind} is a stream, which is read once, but there are epochs={epochs}. Use epochs=1, or a map-style data "
            "set for several passes"
        )
    if processes > 1:
        raise DistributedError(
            f"{kind} is a stream, but {processes} processes train together, and each would have to see the same "
            "examples in the same order. Start a single process, or use a map-style data set"
        )
    if resumed:
        raise CheckpointError(
            f"a training on a stream ({kind}) cannot be resumed: whether the examples that were trained on arrive "
            "again is not known. Begin a new training on the examples that are left: load_checkpoint reads the weights "
            "from the saved state, and DPModel(..., ledger=Ledger.load(...)) continues the ledger of the folder"
        )
    rows.require_unread()


def read_from(dataset: Any) -> Any:
    """What a stream, or the rows of one, reads from; any other data set is returned unchanged."""
    while isinstance(dataset, (StreamRows, Stream)):
        dataset = dataset.stream if isinstance(dataset, StreamRows) else dataset.dataset
    return dataset


def _length_of(stream: Any) -> int:
    try:
        return len(stream)
    except (TypeError, NotImplementedError):
        raise UnsupportedLoaderError(
            f"{type(stream).__name__} is a stream without a length, but the number of examples is part of the privacy "
            "statement. Define __len__, or state it: dpmodel.data.Stream(dataset, num_examples=...)"
        ) from None


def _copy(example: Any) -> Any:
    """A copy, because a ``collate_fn`` may write to its examples."""
    try:
        return copy.deepcopy(example)
    except Exception:  # such as a tensor with a history
        return copied(example)
