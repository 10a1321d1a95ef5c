"""Specimens are taken from batches with a new shape, and change nothing else."""

from __future__ import annotations

import itertools
import pickle
from collections import UserDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset, default_collate

from dpmodel.data.contents import copied
from dpmodel.data.in_memory import InMemoryDataset
from dpmodel.data.loader import RowFetcher
from dpmodel.data.specimens import SPECIMENS, UNPADDED, ShapeRange, SpecimenFetcher, cut, equal, row_shapes
from monitors.errors import DataError, PrivacyWarning


class Lengths(Dataset):
    def __init__(self, lengths):
        self.lengths = lengths

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, row):
        return {"x": torch.full((self.lengths[row],), float(row + 1)), "y": row}


def padded(examples):
    x = torch.nn.utils.rnn.pad_sequence([one.pop("x") for one in examples], batch_first=True)
    return x, torch.tensor([one.pop("y") for one in examples])


def fetcher_of(lengths, collate=padded, seen=None):
    return SpecimenFetcher(RowFetcher(Lengths(lengths), collate), seen or ShapeRange(), secret=True)


def test_the_shortest_and_the_longest_example_are_specimens_alone_and_in_the_batch():
    drawn = fetcher_of([5, 2, 9, 4, 6, 7, 3, 8])[np.arange(8)]
    lengths = [one.alone[0].shape[1] for one in drawn.specimens]
    assert len(lengths) == SPECIMENS
    assert {2, 9} <= set(lengths)
    for one in drawn.specimens:
        assert one.steady
        assert row_shapes(one.beside) == [torch.Size([9]), torch.Size([])]
        assert equal(cut(one.beside, one.alone), one.alone)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=8))
def test_specimens_are_taken_if_and_only_if_a_batch_pads_to_a_new_length(batches):
    lengths = [length for batch in batches for length in batch]
    fetcher, seen, at = fetcher_of(lengths), [], 0
    for batch in batches:
        drawn = fetcher[np.arange(at, at + len(batch))]
        pads = len(set(batch)) > 1
        assert bool(drawn.specimens) == (pads and (not seen or not min(seen) <= max(batch) <= max(seen)))
        seen += [max(batch)] * pads
        at += len(batch)


def test_a_long_example_is_compared_once_it_is_beside_others():
    fetcher = fetcher_of([3, 60, 4])
    assert not fetcher[np.array([1])].specimens
    assert fetcher[np.array([0, 1])].specimens
    assert not fetcher[np.array([2, 1])].specimens


class Texts(Dataset):
    """Strings of different lengths, which the collation pads to one length."""

    def __len__(self):
        return 100

    def __getitem__(self, row):
        return "word " * (1 + row), row


@pytest.mark.parametrize("rows", [2, 8])
def test_only_some_examples_are_measured_after_many_batches_without_padding(rows, monkeypatch):
    measured, collate = [], RowFetcher.collate
    monkeypatch.setattr(RowFetcher, "collate", lambda self, some: measured.append(len(some)) or collate(self, some))

    def fixed(examples):
        return torch.tensor([[len(text)] for text, _ in examples]), torch.tensor([row for _, row in examples])

    fetcher, taken = SpecimenFetcher(RowFetcher(Texts(), fixed), ShapeRange(), secret=True), min(rows, SPECIMENS)
    for number in range(2 * UNPADDED):
        measured.clear()
        assert len(fetcher[np.arange(rows)].specimens) == taken
        assert len(measured) == 2 + 2 * taken + rows * (number < UNPADDED)


def test_a_shape_that_was_often_unpadded_is_compared_when_it_is_padded():
    def read(examples):
        """Reads the examples by name: the names do not show their sizes."""
        return padded([{"x": torch.ones(int(name[1:])), "y": 0} for name in examples])

    names = ["a60"] * 2 + ["a04"] * 2
    fetcher = SpecimenFetcher(RowFetcher(names, read), ShapeRange(), secret=True)
    for _ in range(2 * UNPADDED):
        assert not any(one.padded for one in fetcher[np.array([0, 1])].specimens)
        assert not fetcher[np.array([0])].specimens
    assert any(one.padded for one in fetcher[np.array([0, 2])].specimens)
    assert not fetcher[np.array([1, 3])].specimens


class Shortened(InMemoryDataset):
    """Cuts the padding that is stored with the rows to the longest of a batch."""

    def transform_batch(self, x):
        return x[:, : int((x != 0).sum(1).max())]


def test_data_sets_that_make_whole_batches_are_checked_too():
    x = torch.tril(torch.ones(6, 6))
    fetcher = SpecimenFetcher(RowFetcher(Shortened(x, torch.arange(6))), ShapeRange(), secret=True)
    drawn = fetcher[np.array([0, 3])]
    assert [one.padded for one in drawn.specimens] == [True, False]
    assert not fetcher[np.array([1, 3])].specimens


def test_the_state_of_a_collate_function_is_restored_and_this_is_announced():
    class ToTheLongestSoFar:
        longest = 0

        def __call__(self, examples):
            self.longest = max(self.longest, *(len(one["x"]) for one in examples))
            x, y = padded(examples)
            return torch.nn.functional.pad(x, (0, self.longest - x.shape[1])), y

    collate = ToTheLongestSoFar()
    fetcher = RowFetcher(Lengths([3, 9, 4]), collate)
    with pytest.warns(PrivacyWarning, match="the collate_fn changes .*longest: this is restored after each batch"):
        assert fetcher[np.array([0, 1])][0].shape == (2, 9)
    assert fetcher[np.array([0, 2])][0].shape == (2, 4)
    assert collate.longest == 0
    assert pickle.loads(pickle.dumps(RowFetcher([], default_collate)))._state is None


def test_default_collate_and_empty_batches_need_no_specimens():
    assert fetcher_of([3, 4], lambda rows: padded(rows))[np.arange(2)].specimens
    assert not fetcher_of([3, 3], lambda rows: padded(rows))[np.arange(2)].specimens
    assert not fetcher_of([3, 4], lambda rows: padded(rows))[np.arange(0)].specimens
    pairs = [(torch.ones(2), 0), (torch.ones(2), 1)]
    assert not SpecimenFetcher(RowFetcher(pairs, default_collate), ShapeRange(), secret=True)[np.arange(2)].specimens


def test_shapes_seen_elsewhere_need_no_specimens():
    seen = ShapeRange()
    seen.include(torch.zeros(1, 3)), seen.include(torch.zeros(1, 5))
    seen.include((torch.zeros(1, 3), torch.zeros(1))), seen.include((torch.zeros(1, 5), torch.zeros(1)))
    fetcher = fetcher_of([4, 9, 3], seen=seen)
    assert not fetcher[np.array([0, 2])].specimens
    assert fetcher[np.array([1, 2])].specimens
    assert not seen.covers((torch.zeros(1, 9), torch.zeros(1)))


def test_the_row_of_an_example_is_found_if_the_collate_function_sorts():
    drawn = fetcher_of([2, 9, 4], lambda rows: padded(sorted(rows, key=lambda one: -len(one["x"]))))[np.arange(3)]
    assert all(equal(cut(one.beside, one.alone), one.alone) for one in drawn.specimens)


class Encoding(UserDict):
    """A mapping that is not a dict, as returned by tokenizers."""


def test_a_collate_function_that_changes_its_examples_gets_copies():
    fetcher = SpecimenFetcher(
        RowFetcher([Encoding(x=torch.ones(size), y=0) for size in (2, 5)], padded), ShapeRange(), secret=True
    )
    fetcher._fetcher.examples = lambda rows: [copied(fetcher.dataset[row]) for row in rows]
    assert len(fetcher[np.arange(2)].specimens) == 2


@pytest.mark.parametrize("most", [1, 2])
def test_a_collate_function_that_cannot_be_repeated_is_refused(most):
    calls = itertools.count()

    def failing(examples):
        if next(calls) and len(examples) == most:
            raise KeyError("x")
        return padded(examples)

    with pytest.raises(DataError, match=rf"fails for {most} of its examples .*KeyError: 'x'.*must not write"):
        fetcher_of([2, 5], failing)[np.arange(2)]


def test_specimens_do_not_change_the_draws_of_the_collate_function():
    def masked(examples):
        x, y = padded(examples)
        return x * (torch.rand(x.shape) < 0.5), y

    torch.manual_seed(0)
    drawn = fetcher_of([40, 60], masked)[np.arange(2)]
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(RowFetcher(Lengths([40, 60]), masked)[np.arange(2)][0], drawn.x)
    assert torch.equal(torch.rand(1), after)
    assert not any(one.steady for one in drawn.specimens)


@pytest.mark.parametrize("size", [3, 9])
def test_a_range_covers_everything_between_its_ends(size):
    seen = ShapeRange()
    seen.include(torch.zeros(2, 4, 7)), seen.include(torch.zeros(2, 8, 7))
    assert seen.covers(torch.zeros(1, 5, 7))
    assert not seen.covers(torch.zeros(1, size, 7))
    assert not seen.covers(torch.zeros(1, 5, size))
    assert not seen.covers(torch.zeros(1, 5))
