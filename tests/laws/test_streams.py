"""Laws of one pass over a stream: each example in one step, at the cost that was planned."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, default_collate

from dpmodel import (
    Callback,
    DPModel,
    Ledger,
    NoiseMechanismsFactory,
    StateKeeper,
    load_checkpoint,
    load_param_into_net,
)
from dpmodel.data import Stream
from dpmodel.distributed.ranks import Ranks
from dpmodel.planning.release import ReleasePlan
from dpmodel.runs.folder import RunFolder
from dpmodel.saving.state import read_state
from dpmodel.training.loop import TrainingLoop
from mechanisms import ArrivalOrderSampler, Fixed
from mechanisms.sampling import SAMPLERS
from mechanisms.units import ClippedUnit
from monitors import relation_of
from monitors.errors import CheckpointError, DataError, DistributedError
from monitors.relation import ZERO_OUT

NOISES = [("Gaussian", {}), ("BandedMF", {"bands": 2}), ("BandedMF", {"bands": 10})]


class Arriving(IterableDataset):
    """Rows of tensors in a given order."""

    def __init__(self, tensors, order, length=None):
        self.tensors, self.order, self.length, self.given = tensors, list(order), length, 0

    def __len__(self):
        return len(self.order) if self.length is None else self.length

    def __iter__(self):
        for row in self.order:
            self.given += 1
            yield tuple(tensor[row] for tensor in self.tensors)


def tensors(n=103):
    return torch.randn(n, 2), torch.randint(0, 2, (n,))


def build(noise="Gaussian", *, seed=3, sampling_seed=None, sampling="fixed_order", **options):
    torch.manual_seed(1)
    network = nn.Linear(2, 2)
    return DPModel(
        network,
        nn.CrossEntropyLoss(),
        torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9),
        noise_mech=NoiseMechanismsFactory.create(noise, initial_noise_multiplier=1.2, seed=seed, **options),
        sampling=sampling,
        seed=sampling_seed,
        engine="loop",
    )


def weights(model):
    return torch.cat([value.detach().flatten() for value in model.network.parameters()])


@settings(max_examples=2, deadline=None)
@given(n=st.integers(2, 150), batch=st.integers(1, 60), more=st.integers(0, 30), own=st.booleans(), data=st.data())
def test_each_example_is_in_exactly_one_step_in_order(n, batch, more, own, data):
    batch, seen, take = min(batch, n), [], TrainingLoop._batch
    order, steps = data.draw(st.permutations(range(n + more))), n // batch
    stream = Arriving((torch.arange(2.0 * (n + more)).view(-1, 2), torch.zeros(n + more).long()), order, length=n)
    model = build("BandedMF", bands=min(steps, 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingLoop, "_batch", lambda loop, drawn: seen.append(drawn.x[:, 0] / 2) or take(loop, drawn))
        model.fit(DataLoader(stream, batch, collate_fn=(lambda examples: default_collate(examples)) if own else None))
    assert [len(numbers) for numbers in seen] == [batch] * steps
    assert torch.cat(seen).int().tolist() == order[: steps * batch]
    assert model.ledger.total == steps
    assert stream.given == max(steps * batch, min(n, 64))


@pytest.mark.sample(3)
@pytest.mark.parametrize(("noise", "options"), NOISES)
def test_the_training_equals_that_on_rows_in_the_same_order_bit_for_bit(noise, options):
    data = tensors()
    twin = SAMPLERS.create("fixed_order", 103, 10, 7)
    order = torch.cat([torch.from_numpy(twin.rows(step)) for step in range(10)]).tolist()
    on_rows = build(noise, sampling_seed=7, **options)
    on_rows.fit(DataLoader(TensorDataset(*data), 10))
    on_stream = build(noise, sampling_seed=7, **options)
    on_stream.fit(DataLoader(Arriving(data, order), 10))
    assert torch.equal(weights(on_rows), weights(on_stream))
    assert on_rows.ledger == on_stream.ledger


@pytest.mark.sample(3)
@pytest.mark.parametrize(("noise", "options"), NOISES)
def test_the_planned_ledger_is_the_trained_ledger_of_two_streams(noise, options):
    model, planned = build(noise, seed=None, **options), Ledger()
    for _ in range(2):
        model.fit(DataLoader(Arriving(tensors(), range(103)), 10))
        for sampler in (ArrivalOrderSampler(103, 10), SAMPLERS.create("fixed_order", 103, 10)):
            mechanism = NoiseMechanismsFactory.create(noise, initial_noise_multiplier=1.2, **options)
            plan = ReleasePlan(mechanism, Fixed(), ClippedUnit(1, 10), sampler)
            assert plan.summary(10).total == 10
            one_pass = plan.ledger(10)
        planned.extend(one_pass)
    assert model.ledger == planned
    assert len(model.ledger) == 2  # each pass is charged
    assert relation_of(model.ledger) == ZERO_OUT
    assert "in the order of arrival" in model.statements[0]["sampling"]
    assert "random" not in model.statements[0]["sampling"]


@pytest.mark.slow
def test_a_stream_that_ends_early_ends_the_training_with_everything_kept(tmp_path):
    model = build("BandedMF", bands=4, seed=None)
    stream = Arriving(tensors(), range(75), length=103)
    with pytest.raises(DataError, match="ended after 75 examples, but its length is 103"):
        model.fit(DataLoader(stream, 10), keeper=StateKeeper(tmp_path, 3))
    assert model.ledger.total == model.steps_done == 7
    assert not model.ledger.violations
    assert read_state(RunFolder(tmp_path).state).step == 7
    assert Ledger.load(tmp_path / "ledger.json") == model.ledger
    again = build("BandedMF", bands=4, seed=None)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(CheckpointError, match="cannot be resumed"):
        again.fit(DataLoader(Arriving(tensors(), range(103)), 10), keeper=StateKeeper(tmp_path, 3, resume=True))
    assert again.ledger.total == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("first", ["stream", "rows"])
def test_a_pass_over_a_stream_is_not_continued_on_rows_nor_the_other_way_round(first, tmp_path):
    data = tensors()
    loaders = {
        "stream": lambda: DataLoader(Arriving(data, range(103)), 10),
        "rows": lambda: DataLoader(TensorDataset(*data), 10),
    }

    class Rest(Callback):
        def on_train_step_end(self, run):
            if run.step == 4:
                run.stop("rest")

    other = {"stream": "rows", "rows": "stream"}[first]
    build(seed=None).fit(loaders[first](), callbacks=[Rest()], keeper=StateKeeper(tmp_path, 2))
    with pytest.raises(CheckpointError, match=r"sampling is 'fixed_order' here and 'arrival_order'|cannot be resumed"):
        build(seed=None).fit(loaders[other](), callbacks=[Rest()], keeper=StateKeeper(tmp_path, 2, resume=True))


@pytest.mark.slow
def test_the_examples_that_are_left_train_from_the_saved_weights_at_a_cost_in_addition(tmp_path):
    data = tensors()
    with pytest.raises(DataError, match="ended after 75"):
        build("BandedMF", bands=4, seed=None).fit(
            DataLoader(Arriving(data, range(75), length=103), 10), keeper=StateKeeper(tmp_path, 1)
        )
    model = build("BandedMF", bands=2, seed=None)
    model = DPModel(
        model.network,
        model.loss_fn,
        model.optimizer,
        noise_mech=model.noise_mech,
        sampling="fixed_order",
        engine="loop",
        ledger=Ledger.load(tmp_path / "ledger.json"),
    )
    load_param_into_net(model.network, load_checkpoint(tmp_path / RunFolder(tmp_path).state.name))
    assert model.ledger.total == 7
    model.fit(DataLoader(Arriving(data, range(75, 103)), 10))
    charged = [event.partition for event, _ in model.ledger]
    assert len(set(charged)) == 2
    assert model.ledger.total == 9


def test_every_refusal_comes_before_anything_is_spent(monkeypatch):
    data, model = tensors(), build(seed=None)
    stream = Arriving(data, range(103))
    refused = [
        (lambda: model.fit(DataLoader(stream, 10), epochs=2), "epochs=2"),
        (lambda: model.fit(DataLoader(stream, 10, num_workers=2)), "num_workers=2"),
        (lambda: model.fit(DataLoader(stream, 10), valid_loader=DataLoader(stream, 10)), "the training data"),
        (lambda: model.fit(DataLoader(stream, 200)), "batch_size=200 is larger"),
        (lambda: build(seed=None, sampling="poisson").fit(DataLoader(stream, 10)), "cannot draw"),
        (lambda: build("BandedMF", bands=11).fit(DataLoader(stream, 10)), "bands=11 is more than the 10 steps"),
    ]
    for train, message in refused:
        with pytest.raises(ValueError, match=message):
            train()
    with monkeypatch.context() as patch:
        patch.setattr("dpmodel.model.current_ranks", lambda: type("Two", (Ranks,), {"size": 2})())
        with pytest.raises(DistributedError, match="2 processes"):
            model.fit(DataLoader(stream, 10))
    assert model.ledger.total == stream.given == 0
    model.fit(DataLoader(stream, 10))
    assert model.ledger.total == 10
    with pytest.raises(ValueError, match="has already read 100 examples"):
        model.fit(DataLoader(stream, 10))
    assert model.ledger.total == 10


def test_a_refused_network_leaves_a_one_shot_stream_for_the_next_training():
    x, y = tensors(100)
    stream = Stream(iter([(x[row], y[row]) for row in range(100)]), 100)
    wrong = build()
    wrong.network.weight = nn.Parameter(torch.randn(2, 5))
    wrong.optimizer = torch.optim.SGD(wrong.network.parameters(), lr=0.1)
    with pytest.raises(DataError, match="cannot take the inputs"):
        wrong.fit(DataLoader(stream, 10))
    right, twin = build(), build()
    right.fit(DataLoader(stream, 10))
    twin.fit(DataLoader(Arriving((x, y), range(100)), 10))
    assert torch.equal(weights(right), weights(twin))


def test_first_examples_that_repeat_are_refused():
    model = build()
    with pytest.raises(DataError, match="rows 0 to 31 occur again 32 rows later"):
        model.fit(DataLoader(Arriving(tensors(), [*range(32), *range(32), *range(39)]), 10))
    assert model.ledger.total == 0


def test_examples_that_repeat_later_void_the_claim_before_the_step_that_shows_it():
    model = build(seed=None)
    with pytest.raises(DataError, match="gives its examples more than once"):
        model.fit(DataLoader(Arriving(tensors(), [*range(100), *range(100)]), 10))
    assert 10 <= model.ledger.kept.total <= 15
    assert model.ledger.violations
    assert "more than once" in model.ledger.violations[0]


def test_a_few_equal_examples_are_told(capsys):
    x, y = tensors()
    build().fit(DataLoader(Arriving((x, y), [*range(100), 5]), 10))
    assert "equal some other one" not in capsys.readouterr().out  # the last example is never used
    model = build()
    model.fit(DataLoader(Arriving((x, y), [*range(80), *range(20)]), 10))
    assert "40 of 100 examples of the stream equal some other one" in capsys.readouterr().out
    assert not model.ledger.notes or "equal" not in str(model.ledger.notes)


def test_a_collate_fn_that_mixes_the_examples_of_a_stream_is_refused():
    def mixing(examples):
        x, y = default_collate(examples)
        return x - x.mean(0), y

    model = build()
    with pytest.raises(DataError, match="mixes the examples"):
        model.fit(DataLoader(Arriving(tensors(), range(103)), 10, collate_fn=mixing))
    assert model.ledger.total == 0


def test_padding_of_a_stream_that_changes_gradients_is_refused():
    class Lengths(IterableDataset):
        def __len__(self):
            return 100

        def __iter__(self):
            return ((torch.randn(2 + row % 5), torch.tensor(row % 2)) for row in range(100))

    def padded(examples):
        return nn.utils.rnn.pad_sequence([x for x, _ in examples], batch_first=True)[:, :, None], torch.stack(
            [y for _, y in examples]
        )

    class Mean(nn.Linear):
        def forward(self, x):
            return super().forward(torch.tanh(x)).mean(1)

    network = Mean(1, 2)
    model = DPModel(
        network,
        nn.CrossEntropyLoss(),
        torch.optim.SGD(network.parameters(), lr=0.1),
        noise_mech=NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=1.0),
        sampling="fixed_order",
    )
    with pytest.raises(DataError, match="pads to the longest"):
        model.fit(DataLoader(Lengths(), 10, collate_fn=padded))
    assert model.ledger.total == 0


def test_the_report_states_the_order_of_arrival(tmp_path):
    build("BandedMF", bands=4, seed=None).fit(
        DataLoader(Arriving(tensors(), range(103)), 10),
        valid_loader=tensors(20),
        output=tmp_path / "run",
    )
    text = (tmp_path / "run" / "privacy_report.md").read_text()
    assert "one pass over a stream of 103 examples in the order of arrival" in text
    assert "secret random order" not in text
