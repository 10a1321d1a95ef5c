"""Rows that two data sets share are recognised, wherever they are held; rows that they do not share are accepted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    StackDataset,
    Subset,
    TensorDataset,
    random_split,
)

from dpmodel.data import InMemoryDataset, Stream
from dpmodel.data.held_rows import HeldRows
from dpmodel.data.row_choice import require_held_out
from monitors.errors import UnsupportedLoaderError

X, Y = torch.randn(60, 4), torch.randint(0, 3, (60,))
BY_COLUMN = X.T.contiguous().T
DATA = TensorDataset(X, Y)
FIRST, LAST = TensorDataset(X[:40], Y[:40]), TensorDataset(X[40:], Y[40:])
EXAMPLES = [(X[row], int(Y[row])) for row in range(60)]


class Own(Dataset):
    """A data set of the user over some columns."""

    def __init__(self, *columns):
        self.columns = columns

    def __len__(self):
        first = self.columns[0]
        return len(first["x"] if isinstance(first, dict) else first)

    def __getitem__(self, row):
        raise AssertionError("no example may be read")


class Attributes(Own):
    """The same with a column in an attribute, and constants that data sets share."""

    mean = torch.zeros(4)

    def __init__(self, x):
        self.x, self.constants = x, {"mean": self.mean, "table": X[:3]}

    def __len__(self):
        return len(self.x)


class Slots(Own):
    __slots__ = ("x",)

    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)


class Wrapped(Own):
    """Another view of each example of an inner data set."""

    def __init__(self, inner, size=None):
        self.inner, self.size = inner, len(inner) if size is None else size

    def __len__(self):
        return self.size


class Fold(Own):
    """Some rows of a data set or an array, chosen by code of the user."""

    def __init__(self, base, rows):
        self.base, self.rows = base, rows

    def __len__(self):
        return len(self.rows)


class Chosen(Own):
    """Written like a ``Subset``."""

    def __init__(self, dataset, indices):
        self.dataset, self.indices = dataset, indices

    def __len__(self):
        return len(self.indices)


class Endless(IterableDataset):
    def __init__(self, x):
        self.x = x

    def __iter__(self):
        raise AssertionError("no example may be read")


def memory_map(folder):
    np.save(folder / "x.npy", X.numpy())
    return np.load(folder / "x.npy", mmap_mode="r")


SHARED = {
    "the same": (DATA, DATA),
    "a part": (DATA, FIRST),
    "a loader": (DATA, DataLoader(FIRST, 5)),
    "overlapping slices": (FIRST, TensorDataset(X[39:], Y[39:])),
    "numbers as inputs": (TensorDataset(Y, X), TensorDataset(Y[:5])),
    "a tensor": (DATA, X[5:6]),
    "a nest": (DATA, ({"a": torch.zeros(9, 2), "b": X[:9]}, Y[:9].clone())),
    "a concatenation": (ConcatDataset([FIRST, LAST]), LAST),
    "a subset of a concatenation": (Subset(ConcatDataset([FIRST, LAST]), [0, 45]), Subset(LAST, [5, 6])),
    "concatenations": (ConcatDataset([LAST, FIRST]), ConcatDataset([TensorDataset(X.clone()), Subset(DATA, [0])])),
    "in memory": (InMemoryDataset(X, Y), InMemoryDataset(X[:10], Y[:10])),
    "a tuple": (DATA, (X[:10], Y[:10])),
    "a dict": (Own({"x": X, "y": Y}), Own({"x": X[50:], "y": Y[50:]})),
    "batches in a list": (DATA, [(X[:10], Y[:10]), (X[10:20], Y[10:20])]),
    "own slices": (Own(X[:40], Y[:40]), Own(X[39:], Y[39:])),
    "attributes": (Attributes(X), Attributes(X[:5])),
    "slots": (Slots(X), Slots(X[:5])),
    "numpy views": (Own(X.numpy()[:40]), Own(X.numpy()[39:])),
    "numpy and torch": (DATA, Own(X.numpy()[:3])),
    "reversed": (Own(X.numpy()[::-1]), Own(X.numpy()[:3])),
    "every second row": (Own(X[::2]), Own(X[4:6])),
    "rows that interleave": (Own(BY_COLUMN[:40]), Own(BY_COLUMN)),
    "read-only": (Own(np.broadcast_to(X.numpy(), X.shape)), Own(X.numpy())),
    "lists of the same objects": (Own(EXAMPLES[:40]), Own(EXAMPLES[39:])),
    "lists of views": (Own(EXAMPLES), Own([{"x": X[3], "y": 1}])),
    "a list as data set": (EXAMPLES, EXAMPLES[:1]),
    "a wrapper": (Wrapped(DATA), Wrapped(Subset(DATA, [4]))),
    "wrapped subsets": (Wrapped(Subset(DATA, [1, 2])), Wrapped(Subset(DATA, [2, 3]))),
    "subsets of wrappers": (Subset(Wrapped(DATA), [1, 2]), Subset(Wrapped(DATA), [2, 3])),
    "stacked": (StackDataset(DATA, DATA), FIRST),
    "like a subset": (Chosen(DATA, [1, 2]), Chosen(DATA, np.array([2, 3]))),
    "some of all": (DATA, Fold(DATA, [3, 4])),
    "some of a whole array": (DATA, Fold(X, np.array([3, 4]))),
    "a repetition": (Wrapped(FIRST, 80), DATA),
    "a stream": (Stream(EXAMPLES, 10), EXAMPLES[:3]),
    "an endless stream": (Endless(X), DATA),
}

APART = {
    "slices": (FIRST, LAST),
    "a split": tuple(random_split(DATA, [50, 10])),
    "a split of a concatenation": tuple(random_split(ConcatDataset([FIRST, LAST]), [50, 10])),
    "subsets of two wrappers": (Subset(Wrapped(DATA), range(40)), Subset(Wrapped(DATA), range(40, 60))),
    "wrapped parts of a split": tuple(map(Wrapped, random_split(DATA, [30, 30]))),
    "subsets of two of the user's": (Subset(Own(X, Y), range(40)), Subset(Own(X, Y), range(40, 60))),
    "like subsets": (Chosen(DATA, [1, 2]), Chosen(DATA, [3, -1])),
    "own slices and shared constants": (Attributes(X[:40]), Attributes(X[40:])),
    "numpy views": (Own(X.numpy()[:40]), Own(X.numpy()[40:])),
    "alternating rows": (Own(X[::2]), Own(X[1::2])),
    "rows that interleave": (Own(BY_COLUMN[:40]), Own(BY_COLUMN[40:])),
    "lists": (Own(EXAMPLES[:40]), Own(EXAMPLES[40:])),
    "classes in lists": (Own(X[:40], [int] * 40), Own(X[40:], [int] * 20)),
    "targets of one tensor": (
        Own([(X[row], torch.eye(3)[0]) for row in range(40)]),
        Own([(X[row], torch.eye(3)[0]) for row in range(40, 60)]),
    ),
    "a constant target": (
        TensorDataset(X[:40], torch.zeros(1).expand(40)),
        TensorDataset(X[40:], torch.zeros(1).expand(20)),
    ),
    "folds": (Fold(DATA, [1, 2]), Fold(DATA, [3, 4])),
    "folds of an array": (Fold(X, [1, 2]), Fold(X, [3, 4])),
    "a held training set that is not the examples": (Own(X[:40]), Own(torch.zeros(20, 4), X)),
    "changed copies with the same targets": (DATA, (2 * X, Y)),
    "copies": (DATA, TensorDataset(X.clone(), Y.clone())),
    "streams of one array": (Endless(X), TensorDataset(X[40:])),
    "nothing": (DATA, []),
}


@pytest.mark.parametrize(("one", "other"), SHARED.values(), ids=SHARED)
def test_shared_rows_are_refused(one, other):
    for train, valid in ((one, other), (other, one)):
        train = train.dataset if isinstance(train, DataLoader) else train
        with pytest.raises(UnsupportedLoaderError, match="holds the training data"):
            require_held_out(valid, train)


@pytest.mark.parametrize(("one", "other"), APART.values(), ids=APART)
def test_rows_that_are_not_shared_are_accepted(one, other):
    require_held_out(other, one)
    require_held_out(one, other)


def test_views_of_a_memory_map_are_recognised(tmp_path):
    stored = memory_map(tmp_path)
    assert HeldRows.of(Own(stored[:40])).meets(HeldRows.of(Own(stored[39:])))
    assert not HeldRows.of(Own(stored[:40])).meets(HeldRows.of(Own(stored[40:])))


def test_data_without_memory_and_cycles_are_left_out():
    nested = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])
    ring = Attributes(torch.zeros(2, 3).to_sparse())
    ring.itself, ring.rows = ring, [nested, torch.empty(2, 3, device="meta")]
    assert not HeldRows.of(ring).meets(HeldRows.of(Attributes(X)))
    assert HeldRows.of(ring).meets(HeldRows.of(ring))


spans = st.builds(slice, st.integers(0, 20), st.integers(0, 20), st.integers(1, 3))


@given(first=spans, second=spans, rows=st.lists(st.integers(0, 19), min_size=1), transposed=st.booleans())
def test_rows_meet_if_and_only_if_they_lie_in_the_same_memory(first, second, rows, transposed):
    whole = torch.arange(60).reshape(3, 20).T if transposed else torch.arange(60).reshape(20, 3)
    one, other = whole[first], whole[second]
    rows = [row for row in rows if row < len(one)]
    chosen = set(one[rows].flatten().tolist())
    held = HeldRows.of(Subset(TensorDataset(one), rows))
    assert held.meets(HeldRows.of(TensorDataset(other))) is bool(chosen & set(other.flatten().tolist()))
