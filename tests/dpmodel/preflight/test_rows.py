import functools
import random
import threading
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset, random_split

from dpmodel import poisson_loader
from dpmodel.data.in_memory import InMemoryDataset
from dpmodel.data.loader import PrivateLoader
from dpmodel.preflight.rows import require_no_memory, require_separate_rows
from monitors.errors import DataError

N = 96


@pytest.fixture(autouse=True)
def _time_enough(monkeypatch):
    """Removes the time limit, so that findings do not depend on how busy the machine is."""
    monkeypatch.setattr("dpmodel.preflight.readings.SECONDS", 60.0)


def draws():
    return torch.Generator().manual_seed(5)


X, Y = torch.randn(N, 6, generator=draws()), torch.randint(0, 3, (N,), generator=draws())
IMAGES = torch.randint(0, 256, (N, 1, 4, 4), dtype=torch.uint8, generator=draws())


class Rows(Dataset):
    """The base of the data sets below; ``item`` is given as a function."""

    def __init__(self, item, size=N, **held):
        self.item, self.size = item, size
        self.__dict__.update(held)

    def __len__(self):
        return self.size

    def __getitem__(self, row):
        if not 0 <= row < self.size:
            raise IndexError(row)
        return self.item(self, row)


def held(item, **options):
    return Rows(item, **{"x": X.clone(), "y": Y.clone(), **options})


def wrapped(item, base=None, **options):
    return Rows(item, **{"base": TensorDataset(X, Y) if base is None else base, **options})


def plain(data, row):
    return data.x[row], data.y[row]


def flipped(data, row):
    x, y = data.base[row]
    return x.flip(0), y


def mixed(data, row, other):
    return 0.7 * data.x[row] + 0.3 * data.x[other], data.y[row]


def running_mean(data, row):
    data.seen = data.seen + data.x[row]
    data.count += 1
    return data.x[row] - data.seen / data.count, data.y[row]


def with_the_last(data, row):
    last, data.last = data.last, data.x[row]
    return 0.9 * data.x[row] + 0.1 * last, data.y[row]


def oversampled(data, row):
    first, share = data.rows[row], 0.0 if row < N else 0.02 * (row - N + 1)
    return (1 - share) * data.x[first] + share * data.x[(first + 1) % N], data.y[first]


SERIES = torch.randn(N + 8, generator=draws())
TENSORS = TensorDataset(X, Y)

MIXING = {
    "one fixed partner": held(lambda data, row: mixed(data, row, 7)),
    "the next row": held(lambda data, row: mixed(data, row, (row + 1) % N)),
    "a random partner": held(lambda data, row: mixed(data, row, random.randrange(N))),
    "a random partner by torch": held(lambda data, row: mixed(data, row, int(torch.randint(N, ())))),
    "a random partner of an array": held(lambda data, row: mixed(data, row, np.random.randint(N)), x=X.numpy()),
    "a random partner of a list": held(lambda data, row: mixed(data, row, random.randrange(N)), x=list(X)),
    "a random partner of an inner set": wrapped(
        lambda data, row: (data.base[row][0] + data.base[random.randrange(N)][0], data.base[row][1])
    ),
    "a row at random": held(lambda data, row: plain(data, random.randrange(N))),
    "centred in each reading": held(lambda data, row: (data.x[row] - data.x.mean(0), data.y[row])),
    "centred in each reading, an array": held(
        lambda data, row: (data.x[row] - data.x.mean(0), int(data.y[row])), x=X.numpy()
    ),
    "overlapping windows": Rows(lambda data, row: (data.series[row : row + 8], 0), series=SERIES),
    "overlapping windows of an array": Rows(lambda data, row: (data.series[row : row + 8], 0), series=SERIES.numpy()),
    "overlapping windows of a list": Rows(
        lambda data, row: (torch.tensor(data.series[row : row + 8]), 0), series=SERIES.tolist()
    ),
    "interpolated between rows of a class": held(
        oversampled, size=N + 20, rows=list(range(N)) + [7] * 20, x=X.clone(), y=Y.clone()
    ),
    "an inner set and the same turned": ConcatDataset([TENSORS, wrapped(flipped, TENSORS)]),
    "one tensor under two sets": ConcatDataset([held(plain, x=X, y=Y), held(lambda d, i: (-d.x[i], d.y[i]), x=X, y=Y)]),
    "an inner set indexed twice": wrapped(lambda data, row: data.base[row // 2], size=2 * N),
    "tensors in a dict": Rows(
        lambda data, row: (data.held["x"][row] + data.held["x"][3], data.held["y"][row]), held={"x": X, "y": Y}
    ),
    "mixing with what was read last": held(with_the_last, last=torch.zeros(6)),
    "a running mean": held(running_mean, seen=torch.zeros(6), count=0),
}

REPEATING = {
    "index modulo length": held(lambda data, row: plain(data, row % N), size=8 * N),
    "index over times": held(lambda data, row: plain(data, row // 4), size=4 * N),
    "tiled tensors": TensorDataset(X.repeat(8, 1), Y.repeat(8)),
    "tiled images": InMemoryDataset(IMAGES.repeat(3, 1, 1, 1), Y.repeat(3)),
    "shuffled and tiled": TensorDataset(
        *(t.repeat(4, *[1] * (t.dim() - 1))[torch.randperm(4 * N, generator=draws())] for t in (X, Y))
    ),
    "copies put together": ConcatDataset([TENSORS, TensorDataset(X.clone(), Y.clone())]),
    "large, modulo length": Rows(lambda data, row: (torch.tensor([row % 1500, 1.0]), 0), size=6000),
    "large, in succession": Rows(lambda data, row: (torch.tensor([row // 3, 1.0]), 0), size=6000),
    "large and augmented": Rows(lambda data, row: (torch.tensor([row % 1500, 1.0]) + torch.rand(2), 0), size=6000),
}


@pytest.mark.parametrize("dataset", MIXING.values(), ids=MIXING.keys())
def test_data_sets_in_which_a_row_reaches_several_examples_are_refused(dataset):
    def look():
        require_no_memory(PrivateLoader(dataset, 8), secret=False)
        require_separate_rows(PrivateLoader(dataset, 8))

    with pytest.raises(DataError, match=r"mixes its rows: examples|remembers what it has read: example"):
        look()


class RunningMaximum(Dataset):
    """Scales each item by the largest entry read so far."""

    def __init__(self, size):
        self.x, self.top = torch.rand(size, 3, generator=torch.Generator().manual_seed(0)), 0.0

    def __len__(self):
        return len(self.x)

    def __getitem__(self, row):
        self.top = max(self.top, float(self.x[row].max()))
        return self.x[row] / self.top, 0


@pytest.mark.parametrize("size", [8, 24, 300])
def test_a_running_maximum_is_found_before_it_settles_even_in_few_rows(size):
    with pytest.raises(DataError, match="RunningMaximum remembers what it has read"):
        require_no_memory(PrivateLoader(RunningMaximum(size), 4), secret=False)


@pytest.mark.parametrize("dataset", REPEATING.values(), ids=REPEATING.keys())
def test_data_sets_that_repeat_their_rows_are_refused(dataset):
    with pytest.raises(DataError, match=r"holds its rows more than once|mixes its rows"):
        require_separate_rows(PrivateLoader(dataset, 8))


def windows(step, size=8):
    values = SERIES.unfold(0, size, step)
    return TensorDataset(values, torch.zeros(len(values)))


@pytest.mark.parametrize("dataset", [windows(1), windows(7), Subset(windows(3), range(0, 20, 2)), windows(1, 2)])
def test_windows_of_a_series_that_overlap_in_memory_are_refused(dataset):
    with pytest.raises(DataError, match=r"holds rows that overlap: rows [12] apart share memory"):
        require_separate_rows(PrivateLoader(dataset, 4))


@pytest.mark.parametrize(
    "dataset",
    [
        windows(8),
        Subset(windows(3), range(0, 20, 3)),
        TensorDataset(X.T.contiguous().T, Y),
        TensorDataset(IMAGES.float().expand(N, 3, 4, 4).contiguous(memory_format=torch.channels_last), Y),
        TensorDataset(X, torch.zeros(()).expand(N)),
    ],
)
def test_rows_that_are_apart_in_memory_are_accepted(dataset):
    require_separate_rows(PrivateLoader(dataset, 4))


@dataclass
class Record:
    x: torch.Tensor
    y: int


class Lazy(Rows):
    """Opens a file on the first reading, as sets over HDF5 and LMDB do."""

    def __init__(self, path):
        super().__init__(None, N, path=path, file=None)

    def __getitem__(self, row):
        if self.file is None:
            self.file = open(self.path, "rb")  # noqa: SIM115
        self.file.seek(24 * row)
        return torch.frombuffer(bytearray(self.file.read(24)), dtype=torch.float32), row % 3


def cached(data, row):
    if data.cache[row] is None:
        data.cache[row] = 2 * data.x[row]
    return data.cache[row], data.y[row]


def of_flat_tokens(data, row):
    begin, end = data.offsets[row], data.offsets[row + 1]
    return nn.functional.pad(data.tokens[begin:end], (0, 6 - int(end - begin))), data.y[row]


class Locked(Rows):
    """Cannot be copied."""

    def __init__(self):
        super().__init__(plain, x=X, y=Y, lock=threading.Lock())


OFFSETS = torch.cat([torch.zeros(1, dtype=torch.int64), torch.randint(1, 6, (N,), generator=draws()).cumsum(0)])
TOKENS = torch.randint(50, (int(OFFSETS[-1]),), generator=draws())

HONEST = {
    "tensors": TENSORS,
    "images": InMemoryDataset(IMAGES, Y),
    "one by one": held(plain),
    "an array": held(plain, x=X.numpy(), y=Y.numpy()),
    "a list of dicts": Rows(
        lambda data, row: (data.records[row]["x"], data.records[row]["label"]),
        records=[{"x": x, "label": int(y), "text": "a b"} for x, y in zip(X, Y, strict=True)],
    ),
    "a list of objects": Rows(
        lambda data, row: (data.records[row].x, data.records[row].y),
        records=[Record(x, int(y)) for x, y in zip(X, Y, strict=True)],
    ),
    "columns in a dict": Rows(
        lambda data, row: (data.columns["x"][row], data.columns["y"][row]), columns={"x": X, "y": Y}
    ),
    "a subset": Subset(TENSORS, list(range(0, N, 2))),
    "a random part": random_split(TENSORS, [64, 32])[0],
    "different sets put together": ConcatDataset([held(plain), held(plain, x=X + 1.0, y=Y.clone())]),
    "parts of one set, changed differently": ConcatDataset(
        [wrapped(flipped, Subset(TENSORS, range(48)), size=48), Subset(TENSORS, range(48, N))]
    ),
    "another split of one's own": wrapped(
        lambda data, row: data.base[data.indices[row]], size=48, indices=list(range(0, N, 2))
    ),
    "random noise by torch": held(lambda data, row: (data.x[row] + torch.randn(6), data.y[row])),
    "random noise by numpy": held(lambda data, row: (data.x[row] + np.random.random(), data.y[row])),
    "a coin of Python": held(
        lambda data, row: (data.x[row].flip(0) if random.random() < 0.5 else data.x[row], data.y[row])
    ),
    "a generator of its own": held(
        lambda data, row: (data.x[row] + torch.randn(6, generator=data.rng), data.y[row]), rng=torch.Generator()
    ),
    "draws that depend on the row": held(
        lambda data, row: (data.x[row] + sum(data.rng.random() for _ in range(row % 5)), data.y[row]),
        rng=random.Random(1),
    ),
    "a cache": held(cached, cache=[None] * N),
    "a counter of readings": held(lambda data, row: (*(setattr(data, "n", data.n + 1), data.x[row])[1:], row), n=0),
    "cannot be copied": Locked(),
    "flat tokens with offsets": Rows(of_flat_tokens, tokens=TOKENS, offsets=OFFSETS, y=Y),
    "flat tokens with offsets, arrays": Rows(
        lambda data, row: (int(data.tokens[data.offsets[row] : data.offsets[row + 1]].sum()), data.y[row]),
        tokens=TOKENS.numpy(),
        offsets=OFFSETS.numpy(),
        y=Y,
    ),
    "windows that do not overlap": Rows(
        lambda data, row: (data.series[8 * row : 8 * row + 8], 0), series=torch.randn(8 * N, generator=draws())
    ),
    "word vectors": Rows(
        lambda data, row: (data.vectors[data.tokens[row]].mean(0), data.y[row]),
        vectors=torch.randn(400, 6),
        tokens=torch.randint(400, (N, 5), generator=draws()),
        y=Y,
    ),
    "names of classes": held(
        lambda data, row: (data.x[row], data.names.index(data.names[int(data.y[row])])), names=["a", "b", "c"]
    ),
    "public statistics": held(
        lambda data, row: ((data.x[row] - data.mean) / data.std, data.y[row]), mean=X.mean(0), std=torch.ones(6)
    ),
    "a transform of many parts": held(
        lambda data, row: (functools.reduce(lambda x, f: f(x), data.steps, data.x[row]), data.y[row]),
        steps=[torch.relu, torch.neg] * 8,
    ),
    "iterates over the attributes of a row": held(lambda data, row: (torch.stack(list(data.x[row])), data.y[row])),
    "index_select": held(lambda data, row: (data.x.index_select(0, torch.tensor([row]))[0], data.y.select(0, row))),
    "the length is asked for in each reading": held(
        lambda data, row: (data.x[row] / len(data.x) / data.x.shape[0] / data.x.size(0), data.y[row])
    ),
    "numpy of the tensor in each reading": held(lambda data, row: (data.x.numpy()[row], int(data.y.tolist()[row]))),
    "constant labels of one number": held(plain, y=torch.zeros(()).expand(N)),
    "few values": TensorDataset(
        torch.randint(2, (400, 3), generator=draws()).float(), torch.randint(2, (400,), generator=draws())
    ),
    "few values, one by one": Rows(
        lambda data, row: (data.x[row], 0), size=400, x=torch.randint(2, (400, 3), generator=draws()).float()
    ),
    "few values, sorted, large": Rows(lambda data, row: (torch.tensor([row // 37]), 0), size=6000),
    "some twins": TensorDataset(torch.cat([X, X[:5]]), torch.cat([Y, Y[:5]])),
    "blank images": TensorDataset(
        torch.cat([torch.zeros(40, 6), X]), torch.cat([torch.zeros(40, dtype=torch.int64), Y])
    ),
    "all rows are equal": TensorDataset(torch.zeros(200, 3), torch.zeros(200)),
    "few rows": TensorDataset(torch.zeros(3, 3), torch.zeros(3)),
}


@pytest.mark.sample(4)
@pytest.mark.parametrize("dataset", HONEST.values(), ids=HONEST.keys())
def test_data_sets_of_separate_examples_are_accepted(dataset):
    for _ in range(3):
        require_separate_rows(PrivateLoader(dataset, 2))


def test_a_file_that_the_first_reading_opens_is_opened_again_afterwards(tmp_path):
    path = tmp_path / "rows"
    path.write_bytes(X.numpy().tobytes())
    data = Lazy(path)
    require_separate_rows(PrivateLoader(data, 8))
    assert data.file is None
    x, _ = next(iter(poisson_loader(data, N, num_workers=1)))
    assert torch.equal(x, X)


def test_memory_mapped_rows_are_accepted_and_mixed_ones_refused(tmp_path):
    np.save(tmp_path / "rows.npy", X.numpy())
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    require_separate_rows(PrivateLoader(held(lambda data, row: (torch.tensor(data.x[row]), 0), x=mapped), 8))
    with pytest.raises(DataError, match="mixes its rows"):
        require_separate_rows(PrivateLoader(held(lambda data, row: (data.x[row] + data.x[5], 0), x=mapped), 8))


def test_images_in_folders_are_accepted(tmp_path):
    from PIL import Image
    from torchvision.datasets import ImageFolder

    for name in "ab":
        (tmp_path / name).mkdir()
        for index in range(20):
            Image.fromarray(np.random.default_rng(index + ord(name)).integers(0, 255, (4, 4, 3), np.uint8)).save(
                tmp_path / name / f"{index}.png"
            )
    folder = ImageFolder(str(tmp_path))
    require_separate_rows(PrivateLoader(folder, 8))
    halves = [
        Subset(folder, range(20)),
        wrapped(lambda data, row: data.base[row], Subset(folder, range(20, 40)), size=20),
    ]
    require_separate_rows(PrivateLoader(ConcatDataset(halves), 8))
    turned = wrapped(lambda data, row: (data.base[row][0].rotate(90), data.base[row][1]), folder, size=40)
    with pytest.raises(DataError, match="mixes its rows"):
        require_separate_rows(PrivateLoader(ConcatDataset([folder, turned]), 8))


def test_a_row_that_cannot_be_read_is_left_to_the_training():
    def broken(data, row):
        if row % 7 == 0:
            raise OSError("no such file")
        return plain(data, row)

    assert require_separate_rows(PrivateLoader(held(broken), 8)) is None


def test_data_sets_and_generators_are_restored():
    base = TensorDataset(X, Y)
    data = wrapped(
        lambda data, row: (data.base[row][0] + data.x[row] + data.rng.random() + torch.rand(()), 0),
        base,
        x=list(X),
        rng=random.Random(3),
    )
    before = dict(vars(data)), type(base), dict(vars(base)), data.rng.getstate(), torch.get_rng_state()
    require_separate_rows(PrivateLoader(data, 8))
    after = dict(vars(data)), type(base), dict(vars(base)), data.rng.getstate(), torch.get_rng_state()
    assert all(before[0][name] is after[0][name] for name in before[0])
    assert before[1:4] == after[1:4]
    assert torch.equal(before[4], after[4])


def test_examples_are_chosen_secretly_unless_the_training_is_reproducible():
    def chosen(secret):
        rows = []
        data = Rows(lambda data, row: (rows.append(row), (torch.tensor([row]), 0))[1], size=10**5)
        require_separate_rows(PrivateLoader(data, 8), secret=secret)
        return rows[:24]

    assert chosen(secret=False) == chosen(secret=False) != chosen(secret=True) != chosen(secret=True)


def test_the_note_about_equal_rows_is_printed_and_not_recorded(make_model, capsys):
    model = make_model(nn.Linear(6, 3))
    model.fit(DataLoader(HONEST["some twins"], 20))
    assert "10 of 101 compared rows equal some other row" in capsys.readouterr().out
    assert not [note for note in model.ledger.notes if "equal" in note or "10" in note]


@pytest.mark.parametrize("dataset", [MIXING["overlapping windows"], REPEATING["tiled tensors"]])
def test_a_refused_data_set_costs_nothing(make_model, dataset):
    model = make_model(nn.Linear(dataset[0][0].shape[0], 3))
    with pytest.raises(DataError):
        model.fit(DataLoader(dataset, 16))
    assert model.ledger.total == 0
