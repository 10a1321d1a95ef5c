"""A host that runs ahead of the device: it reads each step's figures before the next release, and nothing changes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from dpmodel import Callback, NoiseMechanismsFactory, poisson_loader
from dpmodel.training import guard as guarding
from dpmodel.training.guard import UpdateGuard
from dpmodel.training.loop import EpochProgress
from dpmodel.training.step import MAX_BROKEN_STEPS
from mechanisms.engines.bookkeeping import engine as bookkeeping
from mechanisms.engines.host_copy import HostCopy
from mechanisms.engines.tally import Tally
from monitors.errors import NonFiniteGradientsError, UnprotectedUpdateError
from monitors.ledger import Ledger


@pytest.fixture
def copies(monkeypatch):
    """Lets copies arrive late, as those of a GPU; returns all that are made."""
    made, make, read = [], HostCopy.__init__, HostCopy.read

    def begin(self, values):
        make(self, values)
        self.unread = True
        made.append(self)

    def arrive(self):
        self.unread = False
        return read(self)

    monkeypatch.setattr(HostCopy, "__init__", begin)
    monkeypatch.setattr(HostCopy, "read", arrive)
    monkeypatch.setattr(HostCopy, "is_late", property(lambda self: self.unread))
    for module in (guarding, bookkeeping):
        monkeypatch.setattr(module, "costs_a_wait", lambda value: True)
    return made


def network_of(width=8):
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3))


@pytest.fixture
def fitted(make_model, make_data):
    def fit(callbacks=(), width=8, poison=False, epochs=2):
        torch.manual_seed(0)
        data = make_data()
        if poison:
            data.tensors[0][:] = torch.nan
        noise = NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=1.0, seed=5)
        model = make_model(network_of(width), noise_mech=noise, seed=3)
        try:
            return model, model.fit(poisson_loader(data, batch_size=16), epochs=epochs, callbacks=list(callbacks))
        except NonFiniteGradientsError as error:
            return model, error

    return fit


def test_a_late_tally_changes_nothing(fitted, request):
    expected, history = fitted()
    copies = request.getfixturevalue("copies")
    found, late_history = fitted()
    assert copies
    for late, early in zip(found.network.parameters(), expected.network.parameters(), strict=True):
        assert torch.equal(late, early)
    assert [row.loss for row in late_history] == [row.loss for row in history]
    assert list(found.ledger) == list(expected.ledger)


@pytest.mark.parametrize("width", [8, 20_000])
def test_the_host_waits_for_no_sum_before_its_release_and_for_all_earlier_ones(width, fitted, copies, monkeypatch):
    at_release, record = [], Ledger.record

    def recording(self, *args, **kwargs):
        at_release.append(([copy.unread for copy in copies], len(copies)))
        return record(self, *args, **kwargs)

    monkeypatch.setattr(Ledger, "record", recording)
    fitted(width=width)
    assert len(at_release) > 4
    begin = known = at_release[0][1]  # the checks before and in the first step do not read their tallies
    for unread, made in at_release[1:]:
        assert not any(unread[begin:known])
        assert any(unread[known:])
        known = made
    assert not any(copy.unread for copy in copies[begin:])


def test_training_stops_after_the_same_number_of_broken_steps(fitted, request):
    expected, early = fitted(poison=True, epochs=40)
    request.getfixturevalue("copies")
    found, late = fitted(poison=True, epochs=40)
    assert str(early) == str(late) != "None"
    assert len(list(found.ledger)) == len(list(expected.ledger))
    assert found.steps_done == expected.steps_done + 1  # the tally of the last step was read in the next one
    assert f"{MAX_BROKEN_STEPS} steps in a row" in str(late)


class Losses(Callback):
    def __init__(self):
        self.read = []

    def on_train_step_end(self, run):
        recent = run.recent_loss
        self.read.append((recent, run.loss, run.recent_loss))


def test_a_callback_gets_the_last_loss_or_without_waiting_the_one_before(fitted, copies):
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


def test_a_write_between_two_steps_is_found_before_the_next_release(copies, make_model, make_data):
    model = make_model(network_of())
    with pytest.raises(UnprotectedUpdateError, match="changed between two private steps"):
        model.fit(poisson_loader(make_data(), batch_size=16), callbacks=[Bypass()])
    assert model.ledger.violations
    assert len(list(model.ledger)) == 2


@pytest.mark.parametrize("width", [8, 20_000])
@pytest.mark.parametrize("end", ["forward_pass", "settle", "until_the_end"])
def test_a_write_of_a_pass_past_torch_is_found_in_the_next_step_or_at_the_end(width, end, copies):
    network, reasons = network_of(width), []
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    guard = UpdateGuard(network, optimizer, violated=reasons.append)
    for step in range(3):
        guard.check()
        with guard.forward_pass(step, []):
            if step == 2:
                for value in network.parameters():
                    value.data += 1.0
        with guard.update(step):
            pass
    found = "changed during the passes of step 2"
    if end == "settle":
        with pytest.raises(UnprotectedUpdateError, match=found):
            guard.settle()
    elif end == "until_the_end":
        with pytest.raises(UnprotectedUpdateError, match=found), guard.until_the_end():
            pass
    else:
        guard.check()
        with pytest.raises(UnprotectedUpdateError, match=found), guard.forward_pass(3, []):
            pass
    since = 2 if width == 8 else 0
    assert reasons == [f"values of parameters or buffers {found}; not verified since step {since}"]
    with pytest.raises(UnprotectedUpdateError, match="training does not continue"):
        guard.check()


def test_an_epoch_reads_its_losses_once_they_have_arrived(copies):
    progress = EpochProgress()
    assert not progress.has_steps
    tallies = [Tally(2, [HostCopy(torch.tensor([float(step), 0.0]))]) for step in range(3)]
    for tally in tallies:
        progress.add(tally)
        assert progress.has_steps
    assert all(copy.unread for copy in copies)
    assert tallies[0].loss == 0.0
    progress.add(Tally.of(math.inf))
    assert [copy.unread for copy in copies] == [False, True, True]
    assert progress.losses == [0.0, 0.5, 1.0, math.inf]
    assert progress.state_dict()["losses"].tolist() == progress.losses
