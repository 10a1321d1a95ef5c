import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset, default_collate

from dpmodel.data.in_memory import InMemoryDataset
from dpmodel.data.loader import PrivateLoader
from dpmodel.preflight.batches import require_unmixed_batches
from monitors.errors import DataError

DATA = TensorDataset(torch.randn(100, 4), torch.arange(100) % 3)


@pytest.fixture(autouse=True)
def _time_enough(monkeypatch):
    monkeypatch.setattr("dpmodel.preflight.batches._SECONDS", 60.0)


class OneByOne(Dataset):
    def __init__(self, lengths=(4,)):
        self.lengths = lengths

    def __len__(self):
        return 100

    def __getitem__(self, row):
        length = self.lengths[row % len(self.lengths)]
        return torch.randn(length, generator=torch.Generator().manual_seed(row)), row % 3


def collated(function):
    def collate(examples):
        x, y = default_collate(examples)
        return function(x), y

    return collate


def mixup(x):
    share = torch.rand(()) * 0.5
    return (1 - share) * x + share * x[torch.randperm(len(x))]


def cutmix_now_and_then(x):
    return torch.cat([x[:, :2], x[torch.randperm(len(x))][:, 2:]], 1) if torch.rand(()) < 0.5 else x


MIXED = {
    "centred": lambda x: x - x.mean(0),
    "scaled by the largest": lambda x: x / x.abs().max(),
    "with the next": lambda x: 0.5 * (x + x.roll(1, 0)),
    "with the next in batches of more than four": lambda x: x if len(x) <= 4 else 0.5 * (x + x.roll(1, 0)),
    "mixup": mixup,
    "mixup by numpy": lambda x: 0.9 * x + 0.1 * x[np.random.permutation(len(x))],
    "cutmix now and then": cutmix_now_and_then,
}

SEPARATE = {
    "scaled each": lambda x: x / x.abs().amax(1, keepdim=True),
    "noise": lambda x: x + torch.randn_like(x),
    "noise by numpy": lambda x: x + torch.from_numpy(np.random.normal(size=tuple(x.shape))).float(),
    "dropped entries": lambda x: x * (torch.rand_like(x) < 0.9),
    "flipped each by a coin": lambda x: torch.where(torch.rand(len(x), 1) < 0.5, x.flip(1), x),
    "flipped all by a rare coin": lambda x: x.flip(1) if torch.rand(()) < 0.05 else x,
    "multiplied in a different order": lambda x: x @ torch.ones(4, 4) / 3,
}


@pytest.mark.parametrize("function", MIXED.values(), ids=MIXED.keys())
def test_a_collate_function_that_mixes_examples_is_refused(function):
    with pytest.raises(DataError, match="the collate_fn mixes the examples of a batch"):
        require_unmixed_batches(PrivateLoader(OneByOne(), 32, collate_fn=collated(function)))


@pytest.mark.sample(7)
@pytest.mark.parametrize("function", SEPARATE.values(), ids=SEPARATE.keys())
def test_a_collate_function_that_treats_examples_separately_is_accepted(function):
    for _ in range(10):
        require_unmixed_batches(PrivateLoader(OneByOne(), 32, collate_fn=collated(function)))


def test_examples_may_be_sorted_in_a_batch():
    def by_first_entry(examples):
        return default_collate(sorted(examples, key=lambda example: example[0][0].item()))

    require_unmixed_batches(PrivateLoader(OneByOne(), 32, collate_fn=by_first_entry))


def test_examples_that_draw_different_amounts_of_randomness_are_accepted():
    class Draws(OneByOne):
        def __getitem__(self, row):
            return torch.rand(row % 7 + 1).sum() + torch.rand(4), row % 3

    def noisy(examples):
        x, y = default_collate(examples)
        return x + torch.randn_like(x), y

    for _ in range(10):
        require_unmixed_batches(PrivateLoader(Draws(), 32, collate_fn=noisy))


class Transformed(InMemoryDataset):
    def __init__(self, function):
        super().__init__(DATA.tensors[0], DATA.tensors[1])
        self.function = function

    def transform_batch(self, x):
        return self.function(super().transform_batch(x)) if len(x) else x


@pytest.mark.parametrize("function", MIXED.values(), ids=MIXED.keys())
def test_a_transform_of_whole_batches_that_mixes_examples_is_refused(function):
    with pytest.raises(DataError, match="Transformed mixes the examples of a batch"):
        require_unmixed_batches(PrivateLoader(Transformed(function), 32))


@pytest.mark.sample(3)
@pytest.mark.parametrize("function", SEPARATE.values(), ids=SEPARATE.keys())
def test_a_transform_of_whole_batches_that_treats_examples_separately_is_accepted(function):
    for _ in range(10):
        require_unmixed_batches(PrivateLoader(Transformed(function), 32))


def test_generators_are_restored_and_unseeded_choices_differ():
    chosen = []

    class Watched(OneByOne):
        def __getitem__(self, row):
            chosen.append(row)
            return super().__getitem__(row)

    before = torch.get_rng_state()
    for secret in (False, False, True):
        require_unmixed_batches(PrivateLoader(Watched(), 32, collate_fn=collated(mixed_none)), secret=secret)
    size = len(chosen) // 3
    assert chosen[:size] == chosen[size : 2 * size] != chosen[2 * size :]
    assert torch.equal(before, torch.get_rng_state())


def mixed_none(x):
    return x + 0.0 * torch.rand(())
