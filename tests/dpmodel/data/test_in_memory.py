import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpmodel.data import InMemoryDataset
from monitors.errors import DataError


def byte_images(count=5, channels=3):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (count, channels, 4, 4), dtype=torch.uint8, generator=generator)
    return x, torch.arange(count) % 3


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), max_size=9))
def test_a_batch_is_the_single_examples_stacked(rows):
    data = InMemoryDataset(*byte_images(), mean=[0.1, 0.2, 0.3], std=0.5)
    x, y = data.batch(torch.tensor(rows, dtype=torch.long))
    assert x.shape == (len(rows), 3, 4, 4)
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    for index, row in enumerate(rows):
        torch.testing.assert_close(x[index], data[row][0])
        assert y[index] == data[row][1]


def test_bytes_become_floats_between_zero_and_one_then_the_constants_apply():
    x = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1)
    y = torch.zeros(2, dtype=torch.long)
    assert InMemoryDataset(x, y).transform_batch(x).flatten().tolist() == [0.0, 1.0]
    assert InMemoryDataset(x, y, mean=0.5, std=0.25).transform_batch(x).flatten().tolist() == [-2.0, 2.0]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_integers_reach_the_network_unchanged(dtype):
    tokens = torch.tensor([[3, 999, 0], [1, 255, 256]], dtype=dtype)
    data = InMemoryDataset(tokens, torch.tensor([0, 1]))
    x, _ = data.batch(torch.tensor([1, 0]))
    assert x.dtype == data[0][0].dtype == torch.int64
    assert x.tolist() == [[1, 255, 256], [3, 999, 0]]


def test_reading_changes_nothing_that_is_stored():
    x = torch.ones(3, 2)
    data = InMemoryDataset(x.clone(), torch.zeros(3, dtype=torch.long), mean=1.0, std=2.0)
    data.batch(torch.arange(3))
    assert torch.equal(data.x, x)


def test_negative_rows_count_from_the_end_and_rows_beyond_are_an_error():
    data = InMemoryDataset(*byte_images())
    assert torch.equal(data[-1][0], data[4][0])
    assert torch.equal(data[-5][0], data[0][0])
    for row in (5, -6):
        with pytest.raises(IndexError):
            data[row]


def test_a_data_loader_reads_it():
    data = InMemoryDataset(*byte_images())
    x, y = next(iter(torch.utils.data.DataLoader(data, batch_size=5)))
    torch.testing.assert_close(x, data.batch(torch.arange(5))[0])
    assert y.tolist() == data.y.tolist()


def test_moving_to_the_same_device_returns_the_data_set_itself():
    data = InMemoryDataset(*byte_images())
    assert data.to("cpu") is data


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        (
            torch.zeros(2, 3, dtype=torch.float64),
            torch.zeros(2, dtype=torch.long),
            {},
            "must be uint8 .*, float32, or int64 or int32 .*, got torch.float64",
        ),
        (torch.zeros(2), torch.zeros(2, dtype=torch.long), {}, "one row per example"),
        (torch.zeros(2, 3), torch.zeros(2), {}, "y must be one integer per example"),
        (torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.long), {}, r"multi-label\) convert to float32"),
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.long), {}, "differ in length: 2 and 3"),
        (torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, dtype=torch.long), {"mean": 0.5}, r"mean=0\.5 cannot be"),
        (torch.zeros(2, 3, dtype=torch.int32), torch.zeros(2, dtype=torch.long), {"std": 2}, "std=2 cannot be applied"),
        (torch.zeros(2, 3, dtype=torch.int16), torch.zeros(2, dtype=torch.long), {}, "got torch.int16; convert it"),
        (torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), {"std": 0.0}, "std must be positive"),
        (
            torch.zeros(2, 3),
            torch.zeros(2, dtype=torch.long),
            {"mean": [1.0, 2.0]},
            "one for each of 3 channels, got 2",
        ),
        (torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), {"mean": float("nan")}, "mean must be finite"),
    ],
)
def test_mismatched_tensors_and_constants_are_refused(x, y, options, message):
    with pytest.raises(DataError, match=message):
        InMemoryDataset(x, y, **options)
