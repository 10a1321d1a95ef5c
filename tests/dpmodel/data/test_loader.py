import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

from dpmodel import poisson_loader
from dpmodel.data.in_memory import InMemoryDataset
from dpmodel.data.inference import evaluation_batches
from dpmodel.data.loader import PrivateLoader, private_loader
from dpmodel.data.row_choice import require_held_out
from monitors.errors import DataError, UnsupportedLoaderError


def test_held_out_data_share_no_row_with_the_training_data():
    whole = TensorDataset(torch.randn(40, 2), torch.zeros(40))
    first, second = torch.utils.data.random_split(whole, [30, 10])
    inputs, targets = whole.tensors
    for allowed in (None, second, DataLoader(second, 5), (torch.randn(5, 2), torch.zeros(5)), Listed()):
        require_held_out(allowed, first)
    require_held_out((inputs[30:], targets[30:]), TensorDataset(inputs[:30], targets[:30]))
    refused = [
        first,
        DataLoader(first, 5),
        whole,
        Subset(first, [3]),
        Subset(whole, [first.indices[7], second.indices[0]]),
    ]
    for shared in refused:
        with pytest.raises(UnsupportedLoaderError, match="valid_loader holds the training data"):
            require_held_out(shared, first)
    columns = torch.randn(3, 40).t()  # rows that are interleaved in memory
    for rows, others in ((slice(30), slice(30, 40)), (slice(0, 40, 2), slice(1, 40, 2))):
        require_held_out((columns[others], targets[others]), TensorDataset(columns[rows], targets[rows]))
    require_held_out((torch.randn(40, 2), targets), whole)  # labels alone show nothing
    with pytest.raises(UnsupportedLoaderError):
        require_held_out((columns[29:], targets[29:]), TensorDataset(columns[:30], targets[:30]))
    for shared in [whole, TensorDataset(*whole.tensors), (inputs, targets), (inputs[20:], targets[20:])]:
        with pytest.raises(UnsupportedLoaderError, match="valid_loader holds the training data"):
            require_held_out(shared, whole)


class Listed(Dataset):
    """Examples one at a time, as most users write data sets."""

    def __init__(self, n=40):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, row):
        return torch.full((2,), float(row)), row


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(torch.zeros(2), 0)])


DATASETS = {
    "listed": Listed(),
    "tensors": TensorDataset(torch.arange(40.0).unsqueeze(1).repeat(1, 2), torch.arange(40)),
}


@pytest.mark.parametrize("dataset", DATASETS.values(), ids=DATASETS.keys())
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_hold_the_sampled_rows(dataset, workers):
    loader = PrivateLoader(dataset, 8, num_workers=workers)
    twin = loader.make_sampler(seed=3)
    for step, (x, y) in enumerate(loader.batches(loader.make_sampler(seed=3), 0, 5)):
        rows = twin.rows(step)
        assert y.tolist() == rows.tolist()
        assert torch.equal(x[:, 0], torch.as_tensor(rows).float())


@pytest.mark.parametrize("dataset", DATASETS.values(), ids=DATASETS.keys())
@pytest.mark.parametrize("workers", [0, 1])
def test_an_empty_batch_keeps_shapes_and_types(dataset, workers):
    x, y = PrivateLoader(dataset, 8, num_workers=workers).fetcher[np.array([], dtype=np.int64)]
    assert x.shape == (0, 2)
    assert x.dtype == torch.float32
    assert y.shape == (0,)
    assert y.dtype == torch.int64


@pytest.mark.parametrize("loader", [DataLoader(Listed(), 8), DataLoader(Listed(), 8, shuffle=True, drop_last=True)])
@pytest.mark.parametrize("sampling", ["poisson", "shuffle"])
def test_plain_loaders_are_rebuilt(loader, sampling):
    rebuilt, was_rebuilt = private_loader(loader, sampling)
    assert rebuilt.num_examples == 40
    assert rebuilt.batch_size == 8
    assert rebuilt.sampling == sampling
    assert was_rebuilt


def test_a_rebuilt_loader_keeps_collate_function_and_workers():
    def collate(examples):
        x, y = zip(*examples, strict=True)
        return torch.stack(x) + 100, torch.tensor(y)

    rebuilt, _ = private_loader(DataLoader(Listed(), 8, collate_fn=collate, num_workers=2), "poisson")
    assert rebuilt.num_workers == 2
    assert rebuilt.example()[0][0, 0].item() == 100


class Doubled(TensorDataset):
    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return 2 * x, y


class Batched(Listed):
    """Has a method with that name but a different meaning, like data sets of other libraries."""

    def batch(self, batch_size, drop_last_batch=False):
        raise AssertionError("not asked for")


def plus_hundred(examples):
    x, y = zip(*examples, strict=True)
    return torch.stack(x) + 100, torch.tensor(y)


IMAGES = InMemoryDataset(torch.full((40, 1, 2, 2), 255, dtype=torch.uint8), torch.arange(40))


@pytest.mark.parametrize("dataset", [DATASETS["tensors"], IMAGES], ids=["tensors", "images"])
def test_a_collate_function_is_used_whatever_the_data_set(dataset):
    loader = DataLoader(dataset, 8, collate_fn=plus_hundred)
    rebuilt, _ = private_loader(loader, "poisson")
    assert rebuilt.fetcher.collates
    assert rebuilt.example()[0].min().item() >= 100
    assert next(iter(evaluation_batches(loader)))[0].min().item() >= 100


def test_the_getitem_of_a_data_set_is_not_bypassed():
    tensors = DATASETS["tensors"].tensors
    assert private_loader(DataLoader(Doubled(*tensors), 8), "poisson")[0].example()[0][1, 0].item() == 2
    assert private_loader(DataLoader(Batched(), 8), "poisson")[0].example()[0].shape == (2, 2)


def told(worker_id):
    torch.utils.data.get_worker_info().dataset.dataset.told = worker_id


class NeedsTelling(Listed):
    told = None

    def __getitem__(self, row):
        assert self.told is not None
        return super().__getitem__(row)


def test_workers_of_a_rebuilt_loader_keep_their_options():
    loader = DataLoader(NeedsTelling(), 8, num_workers=1, worker_init_fn=told, prefetch_factor=3, timeout=60)
    rebuilt, _ = private_loader(loader, "poisson")
    assert rebuilt.worker_options["prefetch_factor"] == 3
    assert rebuilt.worker_options["timeout"] == 60
    assert len(list(rebuilt)) == 5


def test_a_poisson_loader_is_used_unchanged():
    loader = poisson_loader(Listed(), 8)
    assert private_loader(loader, "poisson") == (loader, False)
    assert len(list(loader)) == len(loader) == 5


def test_a_poisson_loader_is_refused_by_a_shuffling_model():
    with pytest.raises(UnsupportedLoaderError, match=r"samples with 'poisson' but .* sampling='shuffle'"):
        private_loader(poisson_loader(Listed(), 8), "shuffle")


@pytest.mark.parametrize(
    ("loader", "named"),
    [
        (DataLoader(Listed(), 8, sampler=WeightedRandomSampler([1.0] * 40, 40)), "WeightedRandomSampler"),
        (DataLoader(Listed(), 8, sampler=DistributedSampler(Listed(), 2, 0)), "DistributedSampler"),
        (DataLoader(Listed(), 8, sampler=RandomSampler(Listed(), replacement=True)), "RandomSampler"),
        (DataLoader(Listed(), 8, sampler=RandomSampler(Listed(), num_samples=80)), "RandomSampler"),
        (
            DataLoader(Listed(), batch_sampler=type("Own", (BatchSampler,), {})(SequentialSampler(Listed()), 8, False)),
            "Own",
        ),
        (DataLoader(Stream(), 8), "Stream"),
        ([(torch.zeros(2), 0)], "list"),
        (DataLoader(Listed(), batch_size=None), "batch_size=None"),
    ],
)
def test_loaders_without_a_privacy_statement_are_refused_by_name(loader, named):
    with pytest.raises(UnsupportedLoaderError, match=named):
        private_loader(loader, "poisson")


def test_a_batch_without_targets_is_refused():
    with pytest.raises(DataError, match="must be \\(inputs, targets\\), got"):
        PrivateLoader(TensorDataset(torch.zeros(4, 2)), 2).example()


def test_several_inputs_stay_together():
    data = TensorDataset(torch.zeros(6, 2), torch.ones(6, 3), torch.arange(6))
    (first, second), y = PrivateLoader(data, 2).example()
    assert first.shape == (2, 2)
    assert second.shape == (2, 3)
    assert y.tolist() == [0, 1]


def test_evaluation_sees_each_example_once():
    data = DATASETS["tensors"]
    for given in (data, DataLoader(data, 7, shuffle=True), poisson_loader(data, 7), data.tensors, Listed()):
        seen = torch.cat([torch.as_tensor(y) for _, y in evaluation_batches(given, 9)])
        assert sorted(seen.tolist()) == list(range(40))


def test_evaluation_of_something_else_is_refused():
    with pytest.raises(DataError, match="cannot evaluate on int"):
        evaluation_batches(3)


TENSORS = DATASETS["tensors"]


@pytest.mark.parametrize(
    "dataset",
    [
        Subset(TENSORS, [0, 1, 1]),
        Subset(Subset(TENSORS, [0, 0, 1]), [0, 1]),
        ConcatDataset([TENSORS, TENSORS]),
        ConcatDataset([Subset(TENSORS, [0, 1]), ConcatDataset([Subset(TENSORS, [1, 2])])]),
    ],
)
def test_a_repeated_row_is_refused(dataset):
    for loader in (DataLoader(dataset, 2), poisson_loader(dataset, 2)):
        with pytest.raises(UnsupportedLoaderError, match="holds rows of its data more than once"):
            private_loader(loader, "poisson")


def test_parts_that_share_no_row_may_be_concatenated():
    dataset = ConcatDataset([Subset(TENSORS, [0, 3]), Subset(TENSORS, [1, 2]), Listed()])
    assert private_loader(DataLoader(dataset, 2), "poisson")[0].num_examples == 44


def several_crops(examples):
    x, y = zip(*examples, strict=True)
    return torch.stack(x).repeat(3, 1), torch.tensor(y).repeat(3)


class ManyRows(InMemoryDataset):
    def batch(self, rows):
        return super().batch(rows.repeat_interleave(3))


@pytest.mark.parametrize(
    "loader", [DataLoader(Listed(), 8, collate_fn=several_crops), DataLoader(ManyRows(IMAGES.x, IMAGES.y), 8)]
)
@pytest.mark.parametrize("rows", [[], [3, 5]])
def test_one_row_of_the_data_is_one_row_of_the_batch(loader, rows):
    rebuilt, _ = private_loader(loader, "poisson")
    if rows:
        with pytest.raises(DataError, match="its first dimension must be the number of examples, each row once"):
            rebuilt.fetcher[np.array(rows)]
    else:
        assert rebuilt.fetcher[np.array(rows, dtype=np.int64)][1].shape == (0,)
