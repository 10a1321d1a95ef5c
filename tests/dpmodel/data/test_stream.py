"""Streams: read once, in order, and refused where that is not possible."""

import copy
import pickle
import weakref

import pytest
import torch
from torch.utils.data import ChainDataset, DataLoader, IterableDataset

from dpmodel import noise_for_epsilon, poisson_loader
from dpmodel.data import Stream
from dpmodel.data.loader import PrivateLoader, private_loader
from dpmodel.data.row_choice import require_held_out
from dpmodel.data.stream import PEEKED, StreamRows, require_one_pass
from monitors.errors import CheckpointError, DataError, DistributedError, UnsupportedLoaderError


class Numbered(IterableDataset):
    """Examples that hold their number; ``given`` lists those that were read."""

    def __init__(self, arriving, length):
        self.arriving, self.length, self.given = arriving, length, []

    def __iter__(self):
        for number in range(self.arriving):
            self.given.append(number)
            yield torch.tensor([float(number)]), number % 2

    def __len__(self):
        if self.length is None:
            raise TypeError("no length")
        return self.length


def loader_of(stream, batch_size=10, **options):
    return private_loader(DataLoader(stream, batch_size, **options), "fixed_order")[0]


def numbers(batches):
    return [x[:, 0].int().tolist() for x, _ in batches]


@pytest.mark.parametrize(("arriving", "length", "batch"), [(100, 100, 10), (1000, 203, 10), (40, 40, 16), (70, 69, 69)])
def test_a_pass_reads_each_example_once_in_order_and_none_after_the_last_whole_batch(arriving, length, batch):
    stream = Numbered(arriving, length)
    loader = loader_of(stream, batch)
    # what the checks read, in any order and often
    for _ in range(3):
        assert loader.example(3)[0][:, 0].tolist() == [0, 1, 2][: min(3, length)]
        loader.spread(20)
    assert len(stream.given) == loader.readable == min(PEEKED, length)
    steps = length // batch
    seen = numbers(loader.batches(loader.make_sampler(), 0, steps))
    assert seen == [list(range(step * batch, step * batch + batch)) for step in range(steps)]
    assert stream.given == list(range(max(steps * batch, min(PEEKED, length))))


def test_the_checks_get_copies_of_the_examples_that_are_trained_on_later():
    rows = StreamRows(Stream([{"x": torch.zeros(2), "words": ["a"]}], 1))
    rows[0]["x"].add_(1)
    rows[0]["words"].append("b")
    rows[0].pop("x")
    rows.begin(1)
    assert str(rows[0]) == "{'x': tensor([0., 0.]), 'words': ['a']}"


def test_examples_that_cannot_be_copied_deeply_are_read_too():
    history = torch.ones(2, requires_grad=True) * 3
    rows = StreamRows(Stream([(history, 1)], 1))
    assert torch.equal(rows[0][0], history)


def test_examples_are_read_in_order_only():
    rows = StreamRows(Numbered(100, 100))
    rows.begin(50)
    assert rows[0][1] == 0
    for row in (0, 2, 99):
        with pytest.raises(DataError, match="only example 1 can be read now"):
            rows[row]
    for row in range(1, 50):
        rows[row]
    with pytest.raises(DataError, match="only example 50"):
        rows[50]
    assert rows.complete


def test_the_stream_is_not_materialised():
    alive, most = weakref.WeakSet(), []

    class Large(IterableDataset):
        def __len__(self):
            return 2000

        def __iter__(self):
            for _ in range(2000):
                example = torch.zeros(8)
                alive.add(example)
                most.append(len(alive))
                yield example, 0

    loader = loader_of(Large(), 20)
    loader.example(4)
    for _ in loader.batches(loader.make_sampler(), 0, 100):
        pass
    assert len(most) == 2000
    assert max(most) <= PEEKED + 2 * 20
    assert len(alive) <= 1


@pytest.mark.parametrize("arriving", [5, 63])
def test_a_stream_that_ends_among_its_first_examples_is_refused_at_once(arriving):
    with pytest.raises(DataError, match=f"ended after {arriving} examples, but its length is 200"):
        StreamRows(Numbered(arriving, 200)).peek()


def test_a_stream_that_ends_early_ends_the_batches():
    loader = loader_of(Numbered(75, 1000))
    batches = loader.batches(loader.make_sampler(), 0, 100)
    assert numbers(next(batches) for _ in range(7))[-1] == list(range(60, 70))
    with pytest.raises(DataError, match="ended after 75 examples, but its length is 1,000"):
        next(batches)


def test_a_refused_training_leaves_the_first_examples_for_the_next():
    examples = ((torch.tensor([float(number)]), 0) for number in range(100))
    stream = Stream(examples, 100)
    loader_of(stream).example()
    loader_of(stream, 20).spread(7)
    loader = loader_of(stream, 25)
    assert numbers(loader) == [list(range(at, at + 25)) for at in range(0, 100, 25)]
    with pytest.raises(UnsupportedLoaderError, match="has already read 100 examples"):
        require_one_pass(loader_of(stream).dataset, 1)


def test_a_training_that_took_no_example_has_not_begun():
    stream = Numbered(100, 100)
    loader = loader_of(stream)
    loader.batches(loader.make_sampler(), 0, 10)
    require_one_pass(loader_of(stream).dataset, 1)
    assert loader_of(stream).example(2)[0].shape == (2, 1)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda stream: pickle.loads(pickle.dumps(stream))])
def test_a_copy_of_a_stream_is_read_by_itself(duplicate):
    stream = Numbered(100, 100)
    loader_of(stream).example()
    other = duplicate(stream)
    other.given = []
    loader = loader_of(other)
    assert numbers(loader) == [list(range(at, at + 10)) for at in range(0, 100, 10)]
    assert other.given == list(range(100))
    assert loader_of(stream).example(2)[0][:, 0].tolist() == [0, 1]
    assert len(stream.given) == PEEKED


def test_the_length_of_a_stream_is_stated():
    with pytest.raises(UnsupportedLoaderError, match=r"Numbered is a stream without a length.*Stream\(dataset, num_ex"):
        loader_of(Numbered(100, None))
    assert loader_of(Stream(Numbered(100, None), 40)).num_examples == 40
    assert loader_of(ChainDataset([Numbered(30, 30), Numbered(30, 30)])).steps_per_epoch == 6
    for wrong in (0, -3, 2.5, None):
        with pytest.raises((ValueError, TypeError), match="num_examples"):
            Stream([], wrong)
    with pytest.raises(TypeError, match="an iterable of examples, got int"):
        Stream(3, 3)
    with pytest.raises(ValueError, match="batch_size=50 is larger than the data set of 40"):
        loader_of(Numbered(40, 40), 50)


@pytest.mark.parametrize("sampling", ["poisson", "shuffle", "cyclic_poisson"])
def test_samplings_that_draw_examples_refuse_a_stream(sampling):
    with pytest.raises(UnsupportedLoaderError, match=rf"from which sampling='{sampling}' cannot draw.*fixed_order"):
        private_loader(DataLoader(Numbered(100, 100), 10), sampling)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"num_workers": 1}, "num_workers=1: workers that iterate"), ({"batch_size": None}, "batch_size=None")],
)
def test_loaders_of_a_stream_without_one_order_of_single_examples_are_refused(options, message):
    with pytest.raises(UnsupportedLoaderError, match=message):
        loader_of(Numbered(100, 100), **options)


@pytest.mark.parametrize("build", [PrivateLoader, poisson_loader])
def test_a_private_loader_is_not_built_on_a_stream_directly(build):
    with pytest.raises(UnsupportedLoaderError, match=r"Pass DataLoader\(stream, batch_size=...\)"):
        build(Numbered(100, 100), 10)


def test_a_training_on_a_stream_is_one_pass_in_one_process():
    rows = StreamRows(Numbered(10, 10))
    require_one_pass(rows, 1)
    require_one_pass(torch.zeros(10), 5, processes=2, resumed=True)
    with pytest.raises(UnsupportedLoaderError, match="epochs=2"):
        require_one_pass(rows, 2)
    with pytest.raises(DistributedError, match="2 processes"):
        require_one_pass(rows, 1, processes=2)
    with pytest.raises(CheckpointError, match=r"cannot be resumed.*load_checkpoint"):
        require_one_pass(rows, 1, resumed=True)
    assert not rows.stream.given


def test_a_stream_does_not_validate_the_training_on_itself():
    inner = Numbered(100, 100)
    stream = Stream(inner, 50)
    for held_out in (stream, DataLoader(stream, 5), DataLoader(inner, 5), Stream(inner, 10)):
        with pytest.raises(UnsupportedLoaderError, match="holds the training data"):
            require_held_out(held_out, StreamRows.of(stream))
    require_held_out(DataLoader(Numbered(100, 100), 5), StreamRows.of(stream))
    assert not inner.given


def test_noise_is_found_for_one_pass_without_reading_the_stream():
    stream = Numbered(5000, 5000)
    loader = DataLoader(stream, 100)
    noise = noise_for_epsilon(2.0, 1e-6, loader, 1, sampling="fixed_order", noise="BandedMF", bands=50)
    independent = noise_for_epsilon(2.0, 1e-6, loader, 1, sampling="fixed_order")
    assert noise.noise_multiplier(0) == pytest.approx(independent.noise_multiplier(0))  # bands are free
    with pytest.raises(UnsupportedLoaderError, match="epochs=2"):
        noise_for_epsilon(2.0, 1e-6, loader, 2, sampling="fixed_order")
    assert not stream.given
