"""A host that runs ahead of the device: it reads each step's figures before the next release, and nothing changes."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from dpmodel import Callback, NoiseMechanismsFactory, StateKeeper, poisson_loader
from dpmodel.saving.checkpoint import save_checkpoint
from dpmodel.training.guard import UpdateGuard
from dpmodel.training.loop import EpochProgress
from dpmodel.training.step import MAX_BROKEN_STEPS
from mechanisms.engines.host_copy import HostCopy
from mechanisms.engines.tally import Tally
from monitors.errors import NonFiniteGradientsError, UnprotectedUpdateError
from monitors.ledger import Ledger


def network_of(width=8):
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3))


@pytest.fixture
def fitted(make_model, make_data):
    def fit(callbacks=(), width=8, poison=False, epochs=2, **options):
        torch.manual_seed(0)
        data = make_data()
        if poison:
            data.tensors[0][:] = torch.nan
        noise = NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=1.0, seed=5)
        model = make_model(network_of(width), noise_mech=noise, seed=3)
        try:
            return model, model.fit(
                poisson_loader(data, batch_size=16), epochs=epochs, callbacks=list(callbacks), **options
            )
        except NonFiniteGradientsError as error:
            return model, error

    return fit


def test_a_late_tally_changes_nothing(fitted, request):
    expected, history = fitted()
    late_copies = request.getfixturevalue("late_copies")
    found, late_history = fitted()
    assert late_copies
    for late, early in zip(found.network.parameters(), expected.network.parameters(), strict=True):
        assert torch.equal(late, early)
    assert [row.loss for row in late_history] == [row.loss for row in history]
    assert list(found.ledger) == list(expected.ledger)


@pytest.mark.parametrize("width", [8, 20_000])
def test_the_host_waits_for_no_sum_before_its_release_and_for_all_earlier_ones(width, fitted, late_copies, monkeypatch):
    at_release, record = [], Ledger.record

    def recording(self, *args, **kwargs):
        at_release.append(([copy.unread for copy in late_copies], len(late_copies)))
        return record(self, *args, **kwargs)

    monkeypatch.setattr(Ledger, "record", recording)
    fitted(width=width)
    assert len(at_release) > 4
    begin = known = at_release[0][1]  # the checks before and in the first step do not read their tallies
    for unread, made in at_release[1:]:
        assert not any(unread[begin:known])
        assert any(unread[known:])
        known = made
    assert not any(copy.unread for copy in late_copies[begin:])


def test_training_stops_after_the_same_number_of_broken_steps(fitted, request, capsys):
    expected, early = fitted(poison=True, epochs=40)
    request.getfixturevalue("late_copies")
    found, late = fitted(poison=True, epochs=40)
    assert str(early) == str(late) != "None"
    assert len(list(found.ledger)) == len(list(expected.ledger))
    assert found.steps_done == expected.steps_done + 1  # the tally of the last step was read in the next one
    assert f"{MAX_BROKEN_STEPS} steps in a row" in str(late)
    assert capsys.readouterr().out.count("\nstep 1: ") == 2


def test_a_training_that_resumes_after_its_last_broken_step_does_another_one(fitted, late_copies, tmp_path):
    keeper = StateKeeper(tmp_path, 1)
    _, late = fitted(poison=True, epochs=40, keeper=keeper)
    assert isinstance(late, NonFiniteGradientsError)
    model, again = fitted(poison=True, epochs=40, keeper=StateKeeper(tmp_path, 1, resume=True))
    assert isinstance(again, NonFiniteGradientsError)
    assert model.ledger.total == MAX_BROKEN_STEPS + 1


class Losses(Callback):
    def __init__(self):
        self.read = []

    def on_train_step_end(self, run):
        recent = run.recent_loss
        self.read.append((recent, run.loss, run.recent_loss))


def test_a_callback_gets_the_last_loss_or_without_waiting_the_one_before(fitted, late_copies):
    seen = Losses()
    fitted([seen])
    assert seen.read[0][0] is None
    before = [None] + [loss for _, loss, _ in seen.read[:-1]]
    assert [recent for recent, _, _ in seen.read] == before
    assert all(loss == after for _, loss, after in seen.read)


def test_without_a_gpu_the_recent_loss_is_the_last_one(fitted):
    seen = Losses()
    fitted([seen])
    assert all(recent == loss for recent, loss, _ in seen.read)


class Bypass(Callback):
    """Writes past torch between two steps."""

    def on_train_step_end(self, run):
        if run.step == 2:
            next(run.network.parameters()).data[0, 0] += 1.0


def test_a_write_between_two_steps_is_found_before_the_next_release(late_copies, make_model, make_data):
    model = make_model(network_of())
    with pytest.raises(UnprotectedUpdateError, match="changed between two private steps"):
        model.fit(poisson_loader(make_data(), batch_size=16), callbacks=[Bypass()])
    assert model.ledger.violations
    assert len(list(model.ledger)) == 2


class Guarded:
    """A network under a guard, with the steps of a training."""

    def __init__(self, width=8):
        self.network, self.reasons = network_of(width), []
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.1)
        self.guard = UpdateGuard(self.network, self.optimizer, violated=self.reasons.append)

    def step(self, number, passes=lambda: None, update=lambda: None):
        self.guard.check()
        with self.guard.forward_pass(number, []):
            passes()
        with self.guard.update(number):
            update()

    def end(self):
        with self.guard.until_the_end():
            pass

    def move(self):
        with torch.no_grad():
            for value in self.network.parameters():
                value.add_(0.5)

    def write(self, by=1.0):
        for value in self.network.parameters():
            value.data += by  # past torch: the version of the tensor stays


ENDS = {
    "the next step": lambda guarded: guarded.step(3),
    "the end of an epoch": lambda guarded: guarded.guard.settle(),
    "the end": lambda guarded: guarded.end(),
    "a checkpoint": lambda guarded: guarded.guard.read_late(),
}


@pytest.mark.parametrize("width", [8, 20_000])
@pytest.mark.parametrize("end", ENDS)
def test_a_write_of_a_pass_past_torch_is_found_in_the_next_step_or_at_the_end(width, end, late_copies):
    guarded = Guarded(width)
    for number in range(2):
        guarded.step(number)
    guarded.step(2, guarded.write)
    found = "changed during the passes of step 2"
    with pytest.raises(UnprotectedUpdateError, match=found):
        ENDS[end](guarded)
    since = 2 if width == 8 else 0
    assert guarded.reasons == [f"values {found}; not verified since step {since}"]
    with pytest.raises(UnprotectedUpdateError, match="training does not continue"):
        guarded.guard.check()


@pytest.mark.parametrize("width", [8, 20_000])
@pytest.mark.parametrize("passes", ["finish", "fail", "undo it"])
def test_a_write_between_two_steps_is_found_whatever_the_passes_do(width, passes, late_copies):
    guarded = Guarded(width)
    for number in range(2):
        guarded.step(number)
    guarded.write()

    def run():
        if passes == "fail":
            raise MemoryError("out of memory")
        if passes == "undo it":
            guarded.write(-1.0)

    with pytest.raises(MemoryError if passes == "fail" else UnprotectedUpdateError), guarded.guard.until_the_end():
        guarded.step(2, run)
    assert len(guarded.reasons) == 1
    assert "changed between two private steps" in guarded.reasons[0]


@pytest.mark.parametrize("width", [8, 20_000])
def test_weights_of_an_earlier_step_hide_no_write_to_the_optimizer(width, late_copies):
    guarded = Guarded(width)
    of_bias = guarded.optimizer.state[guarded.network[0].bias]
    guarded.step(0, update=lambda: of_bias.update(momentum_buffer=torch.ones(width)))
    kept = copy.deepcopy(guarded.network.state_dict())
    guarded.step(1, update=guarded.move)
    guarded.network.load_state_dict(kept)
    of_bias["momentum_buffer"].data.add_(7.0)
    with pytest.raises(UnprotectedUpdateError, match="momentum_buffer"):
        guarded.step(2)
    assert len(guarded.reasons) == 1


@pytest.mark.parametrize("width", [8, 20_000])
def test_passes_that_bring_earlier_weights_back_hide_no_write(width, late_copies):
    guarded = Guarded(width)
    guarded.step(0)
    kept = [value.detach().clone() for value in guarded.network.parameters()]
    guarded.step(1, update=guarded.move)
    guarded.write()

    def restore():
        for value, earlier in zip(guarded.network.parameters(), kept, strict=True):
            value.data.copy_(earlier)

    with pytest.raises(UnprotectedUpdateError, match="changed between two private steps"):
        guarded.step(2, restore)
    assert len(guarded.reasons) == 1


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("width", [8, 20_000])
def test_a_write_past_torch_to_the_state_of_the_optimizer_is_found(width, late, request):
    if late:
        request.getfixturevalue("late_copies")
    guarded = Guarded(width)
    state = torch.ones(guarded.network[0].weight.shape)
    of_weight = guarded.optimizer.state[guarded.network[0].weight]
    guarded.step(0, update=lambda: of_weight.update(momentum_buffer=state))
    state.data.add_(5.0)
    with pytest.raises(UnprotectedUpdateError, match="momentum_buffer"):
        guarded.step(1)
    assert len(guarded.reasons) == 1


def test_a_transposed_weight_is_a_change(late_copies):
    guarded = Guarded(4)
    guarded.step(0)
    guarded.network[0].weight.data = guarded.network[0].weight.data.t()
    with pytest.raises(UnprotectedUpdateError, match=r"0\.weight"):
        guarded.step(1)


def test_a_copy_of_a_model_in_training_has_all_evidence(late_copies, make_model, make_data):
    class Copies(Callback):
        def on_train_step_end(self, run):
            if run.step == 3:
                run.network[0].weight.data += 1.0
                run._guard._late.queue(2, run._guard._trained)
                run.network[0].weight.data -= 1.0
                copy.deepcopy(run.model)

    model = make_model(network_of())
    with pytest.raises(UnprotectedUpdateError, match="during the passes of step 2"):
        model.fit(poisson_loader(make_data(), batch_size=16), callbacks=[Copies()])
    assert model.ledger.violations


@pytest.mark.parametrize("width", [8, 20_000])
def test_an_interruption_while_the_host_waits_loses_no_evidence(width, late_copies, monkeypatch):
    guarded, read = Guarded(width), HostCopy.read
    guarded.step(0)
    guarded.step(1, guarded.write)

    def interrupted(self):
        monkeypatch.setattr(HostCopy, "read", read)
        raise KeyboardInterrupt

    monkeypatch.setattr(HostCopy, "read", interrupted)
    with pytest.raises(KeyboardInterrupt), guarded.guard.until_the_end():
        guarded.step(2)
    assert len(guarded.reasons) == 1
    assert "during the passes of step 1" in guarded.reasons[0]


def test_the_claim_is_void_since_the_first_evidence(late_copies):
    guarded = Guarded()
    guarded.step(0)
    guarded.step(1, guarded.write)
    with torch.no_grad():
        guarded.network[0].bias.add_(1.0)
    with pytest.raises(UnprotectedUpdateError, match="void since step 1"):
        guarded.step(2)


def test_earlier_weights_are_accepted_although_passes_write_to_what_the_optimizer_keeps(late_copies):
    guarded = Guarded()
    parameters = list(guarded.network.parameters())
    total = torch.zeros(sum(value.numel() for value in parameters))
    parts = total.split([value.numel() for value in parameters])

    def update():
        for value, part in zip(parameters, parts, strict=True):
            with torch.no_grad():
                value.sub_(part.view(value.shape), alpha=0.1)
            guarded.optimizer.state[value]["previous"] = part

    earlier = []
    for number in range(5):
        if number == 3:
            for value, kept in zip(parameters, earlier, strict=True):
                value.data.copy_(kept)
        guarded.step(number, lambda number=number: total.fill_(number + 1.0), update)
        if number == 1:
            earlier = [value.detach().clone() for value in parameters]
    guarded.guard.settle()
    assert guarded.reasons == []


@pytest.mark.parametrize("past_torch", [False, True])
@pytest.mark.parametrize("to", [0.0, 2.0])
def test_a_state_of_the_optimizer_may_be_set_to_zero_but_to_nothing_else(past_torch, to, late_copies):
    guarded = Guarded()
    of_bias = guarded.optimizer.state[guarded.network[0].bias]
    guarded.step(0, update=lambda: of_bias.update(momentum_buffer=torch.ones(8)))
    state = of_bias["momentum_buffer"]
    (state.data if past_torch else state).fill_(to)
    if to:
        with pytest.raises(UnprotectedUpdateError, match=r"optimizer's momentum_buffer of 0\.bias"):
            guarded.step(1)
    else:
        guarded.step(1)
        guarded.step(2)
    assert len(guarded.reasons) == (to != 0.0)


@pytest.mark.parametrize("width", [8, 20_000])
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("make", [torch.Tensor.double, lambda value: torch.zeros(2, 2), lambda value: value.t() + 1])
def test_values_of_another_kind_void_the_claim(make, late, width, request):
    if late:
        request.getfixturevalue("late_copies")
    guarded = Guarded(width)
    guarded.step(0)
    guarded.network[0].weight.data = make(guarded.network[0].weight.data)
    with pytest.raises(UnprotectedUpdateError, match="changed between two private steps"):
        guarded.step(1)
    assert len(guarded.reasons) == 1


@pytest.mark.parametrize("source", ["run", "model", "network", "another model"])
def test_weights_are_not_saved_before_their_comparisons_are_read(source, late_copies, make_model, make_data, tmp_path):
    file, guards = tmp_path / "some.ckpt", []

    class Saves(Callback):
        def on_train_step_end(self, run):
            if run.step == 3:  # as if the passes of this step had written
                guards.append(run._guard)
                snapshot = run._guard._trained
                run.network[0].weight.data += 1.0
                run._guard._late.queue(2, snapshot)
                run.network[0].weight.data -= 1.0
                sources = {"run": run, "model": run.model, "network": run.network, "another model": other}
                save_checkpoint(file, sources[source])

    model = make_model(network_of())
    other = make_model(model.network)  # which does not know the training yet
    with pytest.raises(UnprotectedUpdateError, match="during the passes of step 2"):
        model.fit(poisson_loader(make_data(), batch_size=16), callbacks=[Saves()])
    assert guards
    assert not file.exists()
    assert model.ledger.violations


def test_an_epoch_reads_its_losses_once_they_have_arrived(late_copies):
    progress = EpochProgress()
    assert not progress.has_steps
    tallies = [Tally(2, [HostCopy(torch.tensor([float(step), 0.0]))]) for step in range(3)]
    for tally in tallies:
        progress.add(tally)
        assert progress.has_steps
    assert all(copy.unread for copy in late_copies)
    assert tallies[0].loss == 0.0
    progress.add(Tally.of(math.inf))
    assert [copy.unread for copy in late_copies] == [False, True, True]
    assert progress.losses == [0.0, 0.5, 1.0, math.inf]
    assert progress.state_dict()["losses"].tolist() == progress.losses


def test_an_interruption_while_the_host_waits_loses_no_loss(late_copies, monkeypatch):
    progress, read = EpochProgress(), HostCopy.read
    for step in range(2):
        progress.add(Tally(1, [HostCopy(torch.tensor([float(step), 0.0]))]))

    def interrupted(self):
        monkeypatch.setattr(HostCopy, "read", read)
        raise KeyboardInterrupt

    monkeypatch.setattr(HostCopy, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        progress.state_dict()
    assert progress.losses == [0.0, 1.0]
