"""Updates are recorded when they are equal, replayed with fresh noise, and never when a replay could differ."""

from __future__ import annotations

import functools
import re

import pytest
import torch
from torch import nn, optim

from dpmodel import Callback, NoiseMechanismsFactory, StateKeeper
from dpmodel.training import update_graph
from dpmodel.training.update_graph import EQUAL_UPDATES
from mechanisms.rng import SecureGenerator
from monitors.errors import UnprotectedUpdateError
from monitors.ledger import Ledger
from tests.dpmodel.power_cut import PowerCut
from tests.dpmodel.training.updates import (
    OPTIMIZERS,
    SGD,
    SIZE,
    STEPS,
    Keeping,
    Silent,
    require_same,
    two_groups,
    weights,
)


class Padded(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 8, padding_idx=0)
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.embedding((10 * x).abs().long().clamp(max=49)).mean(dim=1))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_replays_give_the_weights_of_the_updates(name, fitted, tapes):
    found = fitted(OPTIMIZERS[name])
    assert re.search(r"\n  \d of 8 updates were replayed as CUDA graphs$", found.explain_engine())
    assert len(tapes) == 1
    require_same(found, fitted(OPTIMIZERS[name], cuda_graphs=False))
    assert len(tapes) == 1


def test_rows_of_padding_get_no_noise_in_a_replay(fitted, tapes):
    found = fitted(network=Padded)
    assert len(tapes) == 1
    assert not found.network.embedding.weight[0].any()
    require_same(found, fitted(network=Padded, cuda_graphs=False))


@pytest.mark.parametrize("seed", [0, 5])
def test_the_noise_of_replays_is_fresh_and_has_the_scale_of_its_step(seed, fitted, tapes):
    keeping, rate = Keeping(), 0.2
    noise = NoiseMechanismsFactory.create("AdaGaussian", noise_decay_rate=rate, decay_policy="Exp", seed=seed)
    model = fitted(functools.partial(optim.SGD, lr=SIZE), Silent, [keeping], noise, epochs=3, norm_bound=0.5)
    assert "9 of 12 updates were replayed" in model.explain_engine()
    kept = torch.stack([torch.zeros(3000), *keeping.kept])
    drawn = kept[:-1] - kept[1:]  # the noise of each step: the learning rate undoes the mean
    assert len(drawn) == STEPS
    scales = torch.tensor([0.5 * model.noise_mech.noise_multiplier(step) for step in range(STEPS)])
    squares = (drawn / scales[:, None]).double().square().mean(dim=1)
    assert (squares - 1).abs().max() < 6 * (2 / 3000) ** 0.5
    correlations = torch.corrcoef(drawn.double()) - torch.eye(STEPS)
    assert correlations.abs().max() < 6 / 3000**0.5


def test_each_release_is_on_the_ledger_before_its_replay(fitted, tapes, monkeypatch):
    recorded, replayed, record, replay = [], [], Ledger.record, update_graph.UpdateGraph.replay

    def before(self, *args, **kwargs):
        recorded.append(args)
        return record(self, *args, **kwargs)

    def after(self, scale):
        replayed.append(len(recorded))
        replay(self, scale)

    monkeypatch.setattr(Ledger, "record", before)
    monkeypatch.setattr(update_graph.UpdateGraph, "replay", after)
    model = fitted(epochs=3)
    assert replayed == list(range(EQUAL_UPDATES + 2, STEPS + 1))
    assert len(recorded) == model.steps_done == STEPS


class Scheduled(Callback):
    """Changes the learning rate before the given steps."""

    def __init__(self, steps):
        self.steps = steps

    def on_train_step_begin(self, run):
        if run.step in self.steps:
            for group in run.optimizer.param_groups:
                group["lr"] *= 0.9


@pytest.mark.parametrize(("steps", "recorded"), [(range(16), 0), ([5], 2), ([13], 1), ([4, 8, 12], 1)])
def test_a_new_learning_rate_ends_the_recording(steps, recorded, fitted, tapes):
    found = fitted(callbacks=[Scheduled(steps)], epochs=4)
    assert len(tapes) == recorded
    require_same(found, fitted(callbacks=[Scheduled(steps)], epochs=4, cuda_graphs=False))


class Changing(Callback):
    """Changes the optimizer before step 6."""

    def __init__(self, change):
        self.change = change

    def on_train_step_begin(self, run):
        if run.step == 6:
            self.change(run.optimizer)


def move(optimizer):
    first, second = optimizer.param_groups
    second["params"].insert(0, first["params"].pop())


def change_a_list(optimizer):
    optimizer.param_groups[0]["betas"][0] = 0.1


def exchange_two_settings(optimizer):
    (group,) = optimizer.param_groups
    values = {**group, "lr": group["momentum"], "momentum": group["lr"]}
    first = {key: values[key] for key in ("params", "momentum", "lr")}
    optimizer.param_groups[0] = {**first, **{key: value for key, value in values.items() if key not in first}}


def with_a_list(parameters):
    optimizer = optim.Adam(parameters, lr=0.01, fused=True)
    optimizer.param_groups[0]["betas"] = [0.9, 0.999]
    return optimizer


@pytest.mark.parametrize(
    ("build", "change"),
    [
        (two_groups, move),
        (with_a_list, change_a_list),
        (lambda parameters: optim.SGD(parameters, lr=0.2, momentum=0.1, fused=True), exchange_two_settings),
    ],
    ids=["group", "list", "names"],
)
def test_a_change_of_the_settings_ends_the_recording(build, change, fitted, tapes):
    def fit(**options):
        return fitted(lambda parameters: build(list(parameters)), callbacks=[Changing(change)], epochs=4, **options)

    found = fit()
    assert len(tapes) == 2
    require_same(found, fit(cuda_graphs=False))


def test_notes_in_the_state_of_an_optimizer_change_nothing(fitted, tapes):
    class Noting(Callback):
        def on_train_step_end(self, run):
            run.optimizer.state["note"] = run.step

    found = fitted(callbacks=[Noting()])
    assert tapes
    require_same(found, fitted(callbacks=[Noting()], cuda_graphs=False))


@pytest.mark.parametrize("build", [SGD, OPTIMIZERS["fused momentum"]])
def test_versions_of_the_weights_rise_with_every_update(build, fitted, tapes):
    class Versions(Callback):
        seen = ()

        def on_train_step_end(self, run):
            self.seen = (*self.seen, run.network[0].weight._version)

    found = Versions()
    fitted(build, callbacks=[found])
    assert sorted(set(found.seen)) == list(found.seen)
    assert tapes


def test_a_scheduler_of_torch_does_not_prevent_a_recording(fitted, tapes):
    class Halving(Callback):
        def on_train_begin(self, run):
            self.scheduler = optim.lr_scheduler.StepLR(run.optimizer, 1, 0.5)

        def on_train_epoch_end(self, run):
            self.scheduler.step()

    found = fitted(callbacks=[Halving()], epochs=3)
    assert tapes
    require_same(found, fitted(callbacks=[Halving()], epochs=3, cuda_graphs=False))


def empty(function):
    return lambda: None


def with_the_same_noise(function):
    """Replays the operators with the position in the stream at which they were recorded."""
    position = {}

    def replay():
        generator = next(cell.cell_contents for cell in function.__closure__ if is_generator(cell.cell_contents))
        position.setdefault(0, generator.position)
        generator.seek(position[0])
        function()

    return replay


def is_generator(value):
    return isinstance(value, SecureGenerator)


def with_the_same_scale(function):
    scale = next(
        cell.cell_contents for cell in function.__closure__ if getattr(cell.cell_contents, "shape", None) == ()
    )

    def replay():
        scale.clamp_(max=1.0)
        function()

    return replay


def once(function):
    seen = []

    def replay():
        if not seen:
            seen.append(1)
            function()

    return replay


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (empty, "the first replays differed from the updates"),
        (once, "the first replays differed from the updates"),
        (with_the_same_noise, "the noise of the first replays was not what it should be"),
        (with_the_same_scale, "the noise of the first replays was not what it should be"),
    ],
)
def test_a_recording_that_does_something_else_is_not_used(record, reason, fitted, tapes, monkeypatch):
    monkeypatch.setattr(update_graph, "as_cuda_graphs", lambda device: record)
    found = fitted(OPTIMIZERS["momentum"])
    assert reason in found.explain_engine()
    require_same(found, fitted(OPTIMIZERS["momentum"], cuda_graphs=False))


@pytest.mark.parametrize("error", [RuntimeError("operation not permitted\nmore"), torch.OutOfMemoryError("too large")])
def test_a_recording_that_fails_changes_nothing(error, fitted, tapes, monkeypatch):
    def failing(device):
        raise error

    monkeypatch.setattr(update_graph, "as_cuda_graphs", failing)
    found = fitted(OPTIMIZERS["fused adam"])
    assert f"recording failed ({type(error).__name__}: {str(error).splitlines()[0]})" in found.explain_engine()
    require_same(found, fitted(OPTIMIZERS["fused adam"], cuda_graphs=False))
    assert all(group["capturable"] is False for group in found.optimizer.param_groups)


@pytest.mark.parametrize("fitting", [0, 1, 2])
def test_without_memory_for_copies_nothing_is_recorded(fitting, fitted, tapes, monkeypatch):
    tried, copies = [], update_graph._copies

    def scarce(update):
        tried.append(update)
        return copies(update) if len(tried) <= fitting else None

    monkeypatch.setattr(update_graph, "_copies", scarce)
    found = fitted()
    assert not tapes
    assert len(tried) <= 3  # not in every step
    assert "too little memory to record one" in found.explain_engine()
    require_same(found, fitted(cuda_graphs=False))


def test_an_interrupted_recording_leaves_the_weights_of_the_update(fitted, tapes, monkeypatch):
    class Interrupted(Callback):
        def on_train_end(self, run):
            self.weights = torch.cat([value.detach().flatten() for value in run.network.parameters()])

    def interrupting(device):
        raise KeyboardInterrupt

    monkeypatch.setattr(update_graph, "as_cuda_graphs", interrupting)
    found, expected = Interrupted(), Keeping()
    with pytest.raises(KeyboardInterrupt):
        fitted(callbacks=[found])
    fitted(callbacks=[expected], cuda_graphs=False)
    torch.testing.assert_close(found.weights, expected.kept[EQUAL_UPDATES], rtol=1e-5, atol=1e-6)


def test_a_resumed_training_with_replays_equals_an_uninterrupted_one(fitted, tapes, tmp_path):
    def fit(*callbacks, keeper=None, **options):
        return fitted(OPTIMIZERS["fused adam"], callbacks=callbacks, epochs=3, keeper=keeper, **options)

    with pytest.raises(KeyboardInterrupt):
        fit(PowerCut(7), keeper=StateKeeper(tmp_path, 4))
    resumed = fit(keeper=StateKeeper(tmp_path, 4, resume=True))
    assert len(tapes) == 2
    assert resumed.steps_done == STEPS
    expected = fit(cuda_graphs=False)
    torch.testing.assert_close(weights(resumed), weights(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("width", [20, 20_000])
def test_a_write_between_two_replays_is_found(width, fitted, tapes):
    class Writing(Callback):
        def on_train_step_end(self, run):
            if run.step == 6:
                run.network[0].weight.data.mul_(1.01)

    def network():
        return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3))

    with pytest.raises(UnprotectedUpdateError, match=r"0\.weight"):
        fitted(network=network, callbacks=[Writing()])
    assert tapes


def test_a_recording_ends_with_its_training(fitted, tapes):
    model = fitted()
    assert model._choice[1]._replay is None
    assert "5 of 8 updates were replayed" in model.explain_engine()
