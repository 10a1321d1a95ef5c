"""Specimens are taken of batches whose shape is new, and do not disturb the others."""

from __future__ import annotations

from collections import UserDict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset, default_collate

from dpmodel.data.contents import copied
from dpmodel.data.loader import RowFetcher
from dpmodel.data.specimens import SPECIMENS, ShapeRange, SpecimenFetcher, cut, equal, row_shapes
from monitors.errors import DataError


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


def test_the_shortest_and_the_longest_are_among_the_specimens_each_alone_and_as_it_is_in_the_batch():
    drawn = fetcher_of([5, 2, 9, 4, 6, 7, 3, 8])[np.arange(8)]
    lengths = [one.alone[0].shape[1] for one in drawn.specimens]
    assert len(lengths) == SPECIMENS
    assert {2, 9} <= set(lengths)
    for one in drawn.specimens:
        assert one.steady
        assert row_shapes(one.beside) == [torch.Size([9]), torch.Size([])]
        assert equal(cut(one.beside, one.alone), one.alone)


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=8))
def test_specimens_are_taken_exactly_if_a_batch_is_longer_or_shorter_than_all_before(batches):
    lengths = [length for batch in batches for length in batch]
    fetcher, seen, at = fetcher_of(lengths), [], 0
    for batch in batches:
        drawn = fetcher[np.arange(at, at + len(batch))]
        assert bool(drawn.specimens) == (not seen or not min(seen) <= max(batch) <= max(seen))
        seen.append(max(batch))
        at += len(batch)


def test_torchs_own_collation_and_empty_batches_need_no_specimens():
    assert fetcher_of([3, 3], lambda rows: padded(rows))[np.arange(2)].specimens
    assert not fetcher_of([3, 3], lambda rows: padded(rows))[np.arange(0)].specimens
    pairs = [(torch.ones(2), 0), (torch.ones(2), 1)]
    assert not SpecimenFetcher(RowFetcher(pairs, default_collate), ShapeRange(), secret=True)[np.arange(2)].specimens


def test_what_was_seen_elsewhere_needs_none_and_is_left_as_it_was():
    seen = ShapeRange()
    seen.include(torch.zeros(1, 3)), seen.include(torch.zeros(1, 5))
    seen.include((torch.zeros(1, 3), torch.zeros(1))), seen.include((torch.zeros(1, 5), torch.zeros(1)))
    fetcher = fetcher_of([4, 9], seen=seen)
    assert not fetcher[np.array([0])].specimens
    assert fetcher[np.array([1])].specimens
    assert not seen.covers((torch.zeros(1, 9), torch.zeros(1)))


def test_a_collation_that_sorts_gives_the_row_of_the_example():
    drawn = fetcher_of([2, 9, 4], lambda rows: padded(sorted(rows, key=lambda one: -len(one["x"]))))[np.arange(3)]
    assert all(equal(cut(one.beside, one.alone), one.alone) for one in drawn.specimens)


class Encoding(UserDict):
    """A mapping that is no dict, as tokenizers return."""


def test_a_collation_that_takes_its_examples_apart_is_given_copies():
    fetcher = SpecimenFetcher(
        RowFetcher([Encoding(x=torch.ones(size), y=0) for size in (2, 5)], padded), ShapeRange(), secret=True
    )
    fetcher._fetcher.examples = lambda rows: [copied(fetcher.dataset[row]) for row in rows]
    assert len(fetcher[np.arange(2)].specimens) == 2


@pytest.mark.parametrize("most", [1, 2])
def test_a_collation_that_cannot_be_repeated_is_said(most):
    calls = []

    def failing(examples):
        calls.append(len(examples))
        if len(calls) > 1 and len(examples) == most:
            raise KeyError("x")
        return padded(examples)

    with pytest.raises(DataError, match=rf"not {most} of its examples .*KeyError: 'x'.*must not write"):
        fetcher_of([2, 5], failing)[np.arange(2)]


def test_draws_of_the_collation_are_seen_and_go_on_as_if_no_specimens_were_taken():
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
def test_a_range_covers_what_lies_between_its_ends(size):
    seen = ShapeRange()
    seen.include(torch.zeros(2, 4, 7)), seen.include(torch.zeros(2, 8, 7))
    assert seen.covers(torch.zeros(1, 5, 7))
    assert not seen.covers(torch.zeros(1, size, 7))
    assert not seen.covers(torch.zeros(1, 5, size))
    assert not seen.covers(torch.zeros(1, 5))
