"""Private mean and variance: what they state, what they cost, and what is refused."""

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from dpmodel.data import InMemoryDataset
from dpmodel.statistics import moments, private_mean_and_variance
from mechanisms.answers import TRUE_SIZE
from monitors import GaussianEvent, Ledger
from monitors.errors import DataError

IMAGES = torch.rand(40, 3, 4, 5, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.0, 2.0, 0.5]).view(
    3, 1, 1
)
LABELS = torch.arange(40) % 2
FREE = {"noise_multiplier": 1e-9, "norm_bound": 100.0, "square_bound": 100.0}


def statistics(x=IMAGES, ledger=None, **options):
    return private_mean_and_variance(x, ledger=Ledger() if ledger is None else ledger, **{**FREE, **options})


@pytest.mark.parametrize(
    ("dims", "axes"), [(None, (0, 2, 3)), ((2, 3), (0, 2, 3)), ((-1,), (0, 3)), ((), (0,)), ((1, 2, 3), (0, 1, 2, 3))]
)
def test_without_clipping_and_noise_they_are_numpys(dims, axes):
    found, numbers = statistics(dims=dims), IMAGES.double().numpy()
    assert np.allclose(found.mean, numbers.mean(axis=axes), atol=1e-8)
    assert np.allclose(found.variance, numbers.var(axis=axes), atol=1e-7)
    normalised = found.normalise()(IMAGES).numpy()
    assert np.allclose(normalised.mean(axis=axes), 0, atol=1e-5)
    assert np.allclose(normalised.std(axis=axes), 1, atol=1e-5)


def test_features_are_treated_one_by_one():
    features = IMAGES.flatten(1)
    assert np.allclose(statistics(features).variance, features.double().numpy().var(axis=0), atol=1e-7)


class Own(Dataset):
    def __init__(self, change=lambda row, x: x):
        self.change = change

    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, row):
        return self.change(row, IMAGES[row]), int(LABELS[row])


@pytest.mark.parametrize("rows", [1, 7, 4096])
@pytest.mark.parametrize("data", [IMAGES, InMemoryDataset(IMAGES, LABELS), TensorDataset(IMAGES, LABELS), Own()])
def test_chunks_and_kinds_of_data_sets_change_no_bit(monkeypatch, data, rows):
    monkeypatch.setattr(moments, "_EXAMPLES", rows)
    bounds = {"norm_bound": 1.0, "square_bound": 1.0, "seed": 7}  # both clip some examples
    assert torch.equal(statistics(data, **bounds).mean, statistics(IMAGES, **bounds).mean)
    assert torch.equal(statistics(data, **bounds).variance, statistics(IMAGES, **bounds).variance)


def test_images_in_bytes_are_read_as_the_network_reads_them():
    images = (IMAGES * 100).to(torch.uint8)
    found = statistics(InMemoryDataset(images, LABELS, mean=0.5, std=0.5))
    assert np.allclose(found.mean, (images.double() / 127.5 - 1).mean(dim=(0, 2, 3)), atol=1e-6)


@pytest.mark.parametrize(("name", "power"), [("norm_bound", 1), ("square_bound", 2)])
def test_both_vectors_are_clipped_to_their_bound(name, power):
    large = torch.full((10, 4), 30.0)
    found = statistics(large, **{name: 1.0, "min_variance": 1e-9})
    moment = found.mean if power == 1 else found.variance + found.mean.square()
    # 4 equal numbers of norm 1; a variance at its floor hides the second moment
    assert torch.allclose(moment, torch.full((4,), 0.5).double(), atol=1e-6) or power == 2
    if power == 2:
        apart = torch.cat([large, -large])
        assert torch.allclose(statistics(apart, **{name: 1.0}).variance, torch.full((4,), 0.5).double(), atol=1e-6)


def test_the_noise_has_the_stated_scale_in_both_moments():
    found = statistics(torch.zeros(50, 6000), noise_multiplier=4.0, norm_bound=3.0, square_bound=5.0, min_variance=1e-9)
    assert found.mean_noise == pytest.approx(4.0 * 3.0 / 50)
    assert found.mean.std() == pytest.approx(found.mean_noise, rel=0.06)
    high = found.variance[found.variance > 1e-9]
    squares = high + found.mean.square()[found.variance > 1e-9]
    assert found.square_noise == pytest.approx(4.0 * 5.0 / 50)
    assert squares.max() < 6 * found.square_noise
    assert (squares > found.square_noise).double().mean() > 0.2


def test_an_example_that_is_not_finite_counts_but_contributes_zero():
    broken = IMAGES.clone()
    broken[3, 0, 0, 0], broken[9, 2, 1, 1] = float("nan"), float("inf")
    rest = IMAGES.double()
    rest[[3, 9]] = 0.0
    assert np.allclose(statistics(broken).mean, rest.mean(dim=(0, 2, 3)), atol=1e-8)


def test_a_variance_is_at_least_the_stated_floor():
    assert statistics(torch.zeros(10, 2), noise_multiplier=3.0).variance.min() >= 3.0 * 100.0 / 10
    assert statistics(torch.ones(10, 2), min_variance=0.25).variance.tolist() == [0.25, 0.25]


def test_both_releases_are_recorded_before_noise_is_drawn(monkeypatch):
    ledger, drawn = Ledger(), []

    def watched(self, count, scale):
        drawn.append((count, ledger.total))
        raise MemoryError

    monkeypatch.setattr("mechanisms.rng.SecureGenerator.normal", watched)
    with pytest.raises(MemoryError):
        statistics(ledger=ledger, noise_multiplier=8.0)
    assert drawn == [(3, 1)]
    assert ledger.rows == ((GaussianEvent(8.0), 1),)


def test_the_ledger_holds_two_gaussian_releases():
    ledger = Ledger()
    statistics(ledger=ledger, noise_multiplier=8.0)
    assert ledger.rows == ((GaussianEvent(8.0), 2),)
    assert ledger.notes == (TRUE_SIZE,)
    statistics(ledger=ledger, noise_multiplier=8.0, seed=3)
    assert any("no guarantee" in note for note in ledger.notes)


@pytest.mark.parametrize("axes", [(1,), (2,), (1, 2), ()])
@pytest.mark.parametrize("layout", [(0, 1, 2), (1, 0, 2), (2, 1, 0)])
def test_the_vector_of_an_example_does_not_depend_on_the_others_in_any_bit(monkeypatch, layout, axes):
    values = torch.randn(33, 13, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    values = values.permute(layout).contiguous().permute(np.argsort(layout).tolist())
    vectors = []
    monkeypatch.setattr(moments.ClippedVectorSum, "add", lambda self, rows: vectors.append(rows))
    for rows in (values, values[1:], values[5:6]):
        with pytest.raises(ValueError, match="were added"):
            statistics(rows, dims=axes)
    both, without, alone = (vectors[number] for number in (0, 2, 4))
    assert np.array_equal(both[1:], without)
    assert np.array_equal(both[5:6], alone)


class Ragged(Own):
    def __getitem__(self, row):
        return IMAGES[row, :, : 3 + row % 2], 0


class Remembers(Own):
    def __getitem__(self, row):
        self.last, before = IMAGES[row], getattr(self, "last", IMAGES[row])
        return (IMAGES[row] + before) / 2, 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise_multiplier": 0.0}, "noise_multiplier must be a positive"),
        ({"norm_bound": -1.0}, "norm_bound must be a positive"),
        ({"square_bound": float("inf")}, "square_bound must be a positive"),
        ({"min_variance": 0.0}, "min_variance must be a positive"),
        ({"min_variance": 1e-80}, "min_variance must be at least 1e-70, got 1e-80"),
        ({"dims": (0,)}, "axis 0 counts the examples"),
        ({"dims": (4,)}, "dims must be different axes from 1 to 3"),
        ({"dims": (2, -2)}, "dims must be different axes"),
        ({"dims": (True,)}, "dims must be different axes"),
        ({"seed": -1}, "seed must be"),
        ({"x": torch.zeros(4)}, "one row of numbers per example"),
        ({"x": torch.zeros(0, 4)}, "one row of numbers per example"),
        ({"x": torch.zeros(4, 2, dtype=torch.int64)}, "must hold floats, got torch.int64"),
        ({"x": [[1.0]]}, "a tensor or a map-style data set of pairs, got list"),
        ({"x": IMAGES.numpy()}, "got ndarray; convert an array with torch.from_numpy"),
        ({"x": IMAGES.to_sparse()}, "x is a sparse_coo tensor"),
        ({"x": IMAGES.repeat(2, 1, 1, 1)}, "TensorDataset holds its rows more than once"),
        ({"x": InMemoryDataset(IMAGES.repeat(2, 1, 1, 1), LABELS.repeat(2))}, "holds its rows more than once"),
        ({"x": torch.rand(60).unfold(0, 5, 1)}, "holds rows that overlap"),
        ({"x": TensorDataset(torch.zeros(4), LABELS[:4])}, r"with one axis or more and not empty, got shape \(\)"),
        ({"x": TensorDataset(torch.zeros(40, 0), LABELS)}, r"not empty, got shape \(0,\)"),
        ({"x": Ragged()}, "the examples cannot be collated into a batch"),
        ({"x": TensorDataset(torch.zeros(0, 2), torch.zeros(0))}, "no examples"),
        ({"x": InMemoryDataset(torch.zeros(4, 2, dtype=torch.int64), LABELS[:4])}, "must hold floats"),
        ({"x": Remembers()}, "remembers what it has read"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_recorded(options, message):
    ledger = Ledger()
    with pytest.raises((ValueError, DataError), match=message):
        statistics(ledger=ledger, **options)
    assert len(ledger) == 0


def test_a_ledger_is_required():
    with pytest.raises(ValueError, match=r"must be a monitors\.Ledger"):
        private_mean_and_variance(IMAGES, ledger=None, **FREE)
