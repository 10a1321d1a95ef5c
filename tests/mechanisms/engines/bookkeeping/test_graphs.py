"""Passes are recorded when they are equal, replayed on new data, and never when a replay could differ."""

from __future__ import annotations

import itertools
import random
import threading

import numpy as np
import pytest
import torch
from torch import nn

from mechanisms.clipping import CLIP
from mechanisms.engines import Batch, BookKeepingEngine
from mechanisms.engines.bookkeeping import graphs
from mechanisms.engines.bookkeeping.graphs import EQUAL_PASSES, KEPT, PassGraphs, cannot_replay
from mechanisms.engines.state.python_state import PythonState
from mechanisms.engines.views import Views
from mechanisms.units import ClippedUnit
from monitors.errors import UnprotectedUpdateError
from tests.mechanisms.engines.bookkeeping.recordings import (
    LOSS,
    UNIT,
    images,
    memory_of,
    network_of,
    recording,
    require_equal,
    started,
    steps,
)


@pytest.mark.parametrize("clip_name", CLIP.names())
def test_replays_give_the_sums_of_the_passes(clip_name):
    engine, network = recording(), network_of()
    found = steps(engine, network, 6, clip=started(clip_name))
    assert engine.graphs.recorded == 1
    require_equal(found, steps(BookKeepingEngine(UNIT), network, 6, clip=started(clip_name)))


def test_a_replay_uses_the_bound_and_the_weights_of_its_step():
    def train(engine):
        network, clip = network_of(), started()

        def between(step):
            clip.start(0.1 + 0.1 * step)
            with torch.no_grad():
                for value in network.parameters():
                    value.mul_(1.1)

        return steps(engine, network, 6, clip=clip, between=between)

    engine = recording()
    require_equal(train(engine), train(BookKeepingEngine(UNIT)))
    assert engine.graphs.recorded == 1


def test_chunks_with_static_shapes_share_a_recording():
    engine, plain, network = recording(), BookKeepingEngine(UNIT), network_of()
    engine.capacity = 5
    sizes = [4, 12, 1, 5, 0, 7]
    require_equal(steps(engine, network, 6, size=sizes.__getitem__), steps(plain, network, 6, size=sizes.__getitem__))
    assert engine.graphs.recorded == 1


def test_few_recordings_are_kept():
    engine, network = recording(), network_of()
    steps(engine, network, 24, size=lambda step: 2 + step // 4)
    assert engine.graphs.recorded > KEPT
    assert len(engine.graphs._kept) == KEPT


def test_batches_of_changing_size_are_not_recorded():
    engine = recording()
    steps(engine, network_of(), 10, size=lambda step: 3 + step % 2)
    assert engine.graphs.recorded == 0


def test_groups_are_replayed():
    engine, plain, network = recording(), BookKeepingEngine(ClippedUnit(2, 2)), network_of()
    engine.unit = plain.unit
    clip, total = started(), memory_of(network)
    for step in range(6):
        drawn = images(4, step)
        ids = torch.tensor([0, 1, 1, 0]) if step % 2 else torch.tensor([1, 0, 0, 0])
        batch = Batch(drawn.x, drawn.y, ids, 2)
        found = engine.clipped_sum(network, LOSS, batch, clip, total)
        expected = plain.clipped_sum(network, LOSS, batch, clip)
        torch.testing.assert_close(found.flat_grad, expected.flat_grad, rtol=1e-5, atol=1e-6)
    assert engine.graphs.recorded == 1


class Shaky(nn.Module):
    """Draws random numbers from the given source."""

    def __init__(self, draw):
        super().__init__()
        self._draw = draw

    def forward(self, x):
        return x * (1.0 + 0.1 * self._draw(x))


class Counting(nn.Module):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return x


@pytest.mark.parametrize(
    "layer",
    [
        nn.Dropout(0.5),
        Shaky(torch.rand_like),
        Shaky(lambda x: random.random()),
        Shaky(lambda x: float(np.random.random())),
    ],
    ids=["dropout", "torch", "random", "numpy"],
)
def test_a_network_that_draws_random_numbers_is_not_recorded(layer):
    engine = recording()
    steps(engine, network_of(layer).train(), 5)
    assert engine.graphs.recorded == 0
    assert "draws random numbers" in engine.graphs.refusal


def test_a_network_that_changes_its_state_is_not_recorded():
    engine = recording()
    steps(engine, network_of(Counting()), 5)
    assert engine.graphs.recorded == 0
    assert "a pass changes" in engine.graphs.refusal
    assert "calls" in engine.graphs.refusal


def test_a_loss_that_changes_its_state_is_not_recorded():
    class CountingLoss(nn.CrossEntropyLoss):
        calls = 0

        def forward(self, outputs, targets):
            self.calls += 1
            return super().forward(outputs, targets)

    engine = recording()
    steps(engine, network_of(), 5, loss_fn=CountingLoss())
    assert engine.graphs.recorded == 0
    assert "a pass changes" in engine.graphs.refusal


class Scaled(nn.Module):
    scale = 1.0

    def forward(self, x):
        return self.scale * x


class Negated(nn.Module):
    def forward(self, x):
        return -x


class Tabled(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.ones(4, 4)
        self.register_buffer("square", torch.randn(4, 4))

    def forward(self, x):
        return (2 if torch.are_deterministic_algorithms_enabled() else 1) * (self.table * self.square) @ x


@pytest.mark.parametrize("passes", [4, 9])
def test_without_a_change_a_recording_lasts(passes):
    engine, network = recording(), network_of(Scaled())
    total = memory_of(network)
    for _ in range(2):
        steps(engine, network, passes, total=total)
    assert engine.graphs.recorded == 1


@pytest.mark.sample(6)
@pytest.mark.parametrize(
    "change",
    [
        lambda network: setattr(network[2], "scale", 3.0),
        lambda network: setattr(network[4], "weight", nn.Parameter(2 * network[4].weight.detach())),
        lambda network: setattr(network[4].bias, "data", network[4].bias.data + 1),
        lambda network: network[1].register_forward_hook(lambda module, inputs, output: 2 * output),
        lambda network: network.eval(),
        lambda network: network[0].requires_grad_(False),
    ],
    ids=["attribute", "parameter", "memory", "hook", "mode", "frozen"],
)
def test_a_change_between_steps_ends_the_recording(change):
    def train(engine):
        network = network_of(Scaled()).train()
        total = memory_of(network)
        before = steps(engine, network, 4, total=total)
        change(network)
        frozen = len(total) - len(memory_of(network[0])) * (not network[0].weight.requires_grad)
        return before + steps(engine, network, 5, total=total[:frozen])

    engine, plain = recording(), BookKeepingEngine(UNIT)
    require_equal(train(engine), train(plain))
    assert engine.graphs.recorded == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda layers, loss: setattr(layers[2], "__class__", Negated),
        lambda layers, loss: setattr(layers[1], "__class__", nn.Softsign),
        lambda layers, loss: setattr(layers[2].table, "data", 3 * layers[2].table.data),
        lambda layers, loss: setattr(layers[2].square, "data", layers[2].square.data.t()),
        lambda layers, loss: setattr(loss.weight, "data", torch.tensor([3.0, 1.0, 2.0])),
        lambda layers, loss: torch.use_deterministic_algorithms(True),
    ],
    ids=["class", "class of torch", "memory", "strides", "memory of the loss", "mode"],
)
def test_a_change_outside_the_attributes_ends_the_recording(change):
    engine, network, loss = recording(), network_of(Tabled()), nn.CrossEntropyLoss(torch.ones(3))
    total = memory_of(network)
    steps(engine, network, 4, loss_fn=loss, total=total)
    try:
        change(network, loss)
        steps(engine, network, 4, loss_fn=loss, total=total)
    finally:
        torch.use_deterministic_algorithms(False)
    assert engine.graphs.recorded == 2


def test_a_network_that_reads_what_may_change_unnoticed_is_not_recorded():
    numbers = itertools.count()
    engine = recording()
    steps(engine, network_of(Shaky(lambda x: 1e-6 * next(numbers))), 5)
    assert engine.graphs.recorded == 0
    assert "numbers, whose changes are not noticed" in engine.graphs.refusal


def test_a_tensor_on_another_device_prevents_a_recording():
    network, loss = network_of(), nn.BCEWithLogitsLoss(pos_weight=torch.tensor(2.0))
    assert cannot_replay(PythonState(network, loss), torch.device("cpu")) is None
    network.to("meta")  # the weight of the loss stays where it is
    refusal = cannot_replay(PythonState(network, loss), torch.device("meta"))
    assert refusal == "a tensor of the network or the loss is on cpu, not on meta"


def test_a_broken_example_has_no_part_in_a_replayed_sum():
    def train(engine):
        network, clip, found = network_of(), started(), []
        total = memory_of(network)
        for step in range(8):
            batch = images(4, step)
            if step in (4, 5, 7):
                batch.x[1] = float("nan")
            summed = engine.clipped_sum(network, LOSS, batch, clip, total)
            found.append((summed.flat_grad.clone(), summed.norms.nan_to_num(-1.0), 0.0, summed.rejected))
        return found

    found = train(recording())
    assert all(grad.isfinite().all() for grad, *_ in found)
    require_equal(found, train(BookKeepingEngine(UNIT)))


def test_a_tensor_that_escapes_while_a_pass_is_recorded_stops_the_training():
    kept = []

    class Leaking(nn.Module):
        def forward(self, x):
            if seen["recording"]:
                threading.current_thread().kept = [x + 1]
            return x

    seen = {"recording": False}
    engine, network = recording(), network_of(Leaking())

    def leaky():
        def record(function):
            seen["recording"] = True
            function()
            kept.append(threading.current_thread().kept)
            return function

        return record

    engine.graphs = PassGraphs(record=leaky)
    with pytest.raises(UnprotectedUpdateError, match="outlive the pass"):
        steps(engine, network, EQUAL_PASSES + 1)
    assert engine.graphs.recorded == 0
    assert not engine.graphs._kept


def test_a_replay_that_reads_an_earlier_batch_is_noticed(monkeypatch):
    monkeypatch.setattr(graphs, "_tensors", lambda batch: [])  # nothing is copied
    engine, network = recording(), network_of()
    found = steps(engine, network, 6)
    assert engine.graphs.refusal == "the first replay differed from the pass"
    require_equal(found, steps(BookKeepingEngine(UNIT), network, 6))


@pytest.mark.parametrize(("clip_name", "recordings"), [("Fixed", 1), ("Gaussian", 2)])
def test_a_replay_that_adds_nothing_is_noticed(clip_name, recordings):
    parts = []

    def empty():
        def record(function):
            parts.append(function)
            return function if len(parts) < recordings else lambda: None

        return record

    engine, network = recording(), network_of()
    engine.graphs = PassGraphs(record=empty)
    found = steps(engine, network, 6, clip=started(clip_name))
    assert len(parts) == recordings
    assert engine.graphs.refusal == "the first replay differed from the pass"
    require_equal(found, steps(BookKeepingEngine(UNIT), network, 6, clip=started(clip_name)))


def test_a_recording_that_fails_leaves_the_passes_as_they_are():
    def failing():
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    engine, network = recording(), network_of()
    engine.graphs = PassGraphs(record=failing)
    require_equal(steps(engine, network, 6), steps(BookKeepingEngine(UNIT), network, 6))
    assert "operation not permitted when stream is capturing" in engine.graphs.refusal
    assert "more" not in engine.graphs.refusal


def test_graphs_are_off_on_a_cpu_and_when_asked():
    for engine in (BookKeepingEngine(UNIT), BookKeepingEngine(UNIT, cuda_graphs=False)):
        steps(engine, network_of(), 4)
        assert engine.graphs.recorded == 0
        assert "CUDA graphs" not in engine.explain()


def test_trusted_networks_are_not_recorded():
    engine = recording()
    engine.boundary.isolation = "trust"
    steps(engine, network_of(), 5)
    assert engine.graphs.recorded == 0


def test_releasing_the_engine_frees_its_recordings():
    engine, network = recording(), network_of()
    steps(engine, network, 4)
    assert engine.graphs._kept
    engine.release()
    assert not engine.graphs._kept
    require_equal(steps(engine, network, 4), steps(BookKeepingEngine(UNIT), network, 4))


def test_a_setting_of_the_convolutions_ends_the_recording(monkeypatch):
    engine, network = recording(), network_of()
    total = memory_of(network)
    steps(engine, network, 4, total=total)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", not torch.backends.cudnn.deterministic)
    steps(engine, network, 4, total=total)
    assert engine.graphs.recorded == 2


def test_views_are_made_anew_for_each_replay():
    network, clip = network_of(), started()
    engine, plain, total = recording(), BookKeepingEngine(UNIT), memory_of(network)
    for step in range(6):
        numbers = torch.randn(4, 3, 1, generator=torch.Generator().manual_seed(step))
        drawn = images(4, step)
        views = Views(numbers, lambda copies, numbers: copies + numbers.view(-1, 1, 1, 1))
        batch = Batch(drawn.x, drawn.y, views=views)
        found = engine.clipped_sum(network, LOSS, batch, clip, total)
        expected = plain.clipped_sum(network, LOSS, batch, clip)
        torch.testing.assert_close(found.flat_grad, expected.flat_grad, rtol=1e-5, atol=1e-6)
    assert engine.graphs.recorded == 1
