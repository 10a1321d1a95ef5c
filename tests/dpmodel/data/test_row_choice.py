from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from dpmodel.data.in_memory import InMemoryDataset
from dpmodel.data.inference import evaluation_batches
from dpmodel.data.loader import private_loader
from dpmodel.data.row_choice import drawn_from, require_held_out
from monitors.errors import UnsupportedLoaderError

SIZE = 12
DATA = TensorDataset(torch.arange(SIZE).float()[:, None], torch.zeros(SIZE, dtype=torch.int64))
rows_of_data = st.lists(st.integers(0, SIZE - 1), min_size=1, unique=True)


def loaders(data, rows):
    """Loaders that draw these rows, written in every possible way."""
    return [
        DataLoader(data, 2, sampler=SubsetRandomSampler(rows)),
        DataLoader(data, 2, sampler=rows),
        DataLoader(data, batch_sampler=BatchSampler(SubsetRandomSampler(rows), 2, False)),
        DataLoader(data, batch_size=None, sampler=BatchSampler(SubsetRandomSampler(rows), 2, False)),
        DataLoader(Subset(data, rows), 2),
        Subset(data, rows),
    ]


@given(rows=rows_of_data, others=rows_of_data)
def test_held_out_rows_are_accepted_if_and_only_if_none_is_trained_on(rows, others):
    copied = TensorDataset(*DATA.tensors)  # a different object on the same memory
    for held_out in (*loaders(DATA, others), *loaders(copied, others)):
        if set(rows) & set(others):
            with pytest.raises(UnsupportedLoaderError, match="holds the training data"):
                require_held_out(held_out, Subset(DATA, rows))
        else:
            require_held_out(held_out, Subset(DATA, rows))


def test_negative_rows_count_from_the_end():
    with pytest.raises(UnsupportedLoaderError, match="holds the training data"):
        require_held_out(Subset(DATA, [-1]), Subset(DATA, [SIZE - 1]))


@given(rows=rows_of_data)
def test_training_on_the_rows_of_a_sampler_is_training_on_that_subset(rows):
    for loader in loaders(DATA, rows)[:2]:
        private, rebuilt = private_loader(
            DataLoader(DATA, 1, sampler=loader.sampler),
            "poisson",
        )
        assert private.num_examples == len(rows)
        assert rebuilt
        assert private.make_sampler().sampling_rate == 1 / len(rows)
        assert sorted(int(x) for x, _ in private.dataset) == sorted(rows)


def test_repeated_rows_of_a_sampler_are_refused():
    with pytest.raises(UnsupportedLoaderError, match="more than once"):
        private_loader(DataLoader(DATA, 2, sampler=SubsetRandomSampler([1, 1, 2])), "poisson")


def test_random_samplers_are_still_refused_and_count_as_all_rows():
    weighted = DataLoader(DATA, 2, sampler=WeightedRandomSampler([1.0] * SIZE, 3))
    assert drawn_from(weighted) is DATA
    with pytest.raises(UnsupportedLoaderError, match="WeightedRandomSampler"):
        private_loader(weighted, "poisson")
    with pytest.raises(UnsupportedLoaderError, match="holds the training data"):
        require_held_out(DataLoader(DATA, 2, sampler=RandomSampler(DATA, num_samples=1)), Subset(DATA, [0]))


def test_evaluation_sees_only_the_rows_of_the_sampler():
    data = InMemoryDataset(*DATA.tensors)
    for loader in loaders(data, [3, 5, 8])[:3]:
        seen = torch.cat([x for x, _ in evaluation_batches(loader)]).flatten()
        assert sorted(seen.tolist()) == [3.0, 5.0, 8.0]


def test_other_rows_of_the_training_data_set_may_be_validation_data(make_model, make_data):
    data = make_data(n=64)
    held_out = DataLoader(data, 10, sampler=SubsetRandomSampler(range(50, 64)))
    train = DataLoader(data, 10, sampler=SubsetRandomSampler(range(50)))
    history = make_model().fit(train, valid_loader=held_out)
    assert history[-1].metrics["valid_loss"] > 0
