from __future__ import annotations

import gc
import math
import weakref
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from dpmodel import Callback, poisson_loader
from dpmodel.training.guard import UpdateGuard
from monitors.errors import UnprotectedUpdateError

pytestmark = pytest.mark.usefixtures("copies_arrive")


def guarded():
    network = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    return network, optimizer, UpdateGuard(network, optimizer)


def stepped(network, optimizer):
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def test_a_guard_that_is_collected_in_the_middle_of_a_step_does_not_disturb_it():
    held = [guarded()[2]]
    gone = weakref.ref(held[0])

    def collect(*args):
        held.clear()
        gc.collect()

    hook = register_optimizer_step_post_hook(collect)
    try:
        network, optimizer, last = guarded()
        stepped(network, optimizer)
    finally:
        hook.remove()
    assert gone() is None
    with pytest.raises(UnprotectedUpdateError, match="changed before the first step"):
        last.check()


def test_a_guard_counts_steps_of_other_optimizers_only_if_they_hold_its_parameters():
    network, _, guard = guarded()
    stepped(*guarded()[:2])
    guard.check()
    stepped(network, torch.optim.Adam(network.parameters(), fused=True))
    with pytest.raises(UnprotectedUpdateError):
        guard.check()


def test_a_gradient_of_a_frozen_parameter_never_reaches_the_optimizer(make_model, make_data):
    network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    data = make_data()
    model = make_model(network)
    nn.CrossEntropyLoss()(network(data.tensors[0]), data.tensors[1]).backward()
    network[0].requires_grad_(False)
    before = network[0].weight.clone()
    model.fit(poisson_loader(data, batch_size=16))
    assert torch.equal(network[0].weight, before)

    class Backward(Callback):
        def on_train_step_end(self, run):
            network[0].weight.grad = torch.ones_like(network[0].weight)

    with pytest.raises(UnprotectedUpdateError, match=r"'0\.weight' has a gradient that dpmodel did not make"):
        model.fit(poisson_loader(data, batch_size=16), callbacks=[Backward()])
    assert torch.equal(network[0].weight, before)


@pytest.mark.sample(4)
@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("engine", ["bookkeeping", "loop"])
def test_a_buffer_that_is_written_late_never_holds_the_data(make_model, make_data, engine, replaced):
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)
            self.register_buffer("mean", torch.zeros(4))
            self.late = False

        def forward(self, x):
            if self.late:
                if replaced:
                    self.mean = x.detach().mean(0)
                else:
                    self.mean.add_(x.detach().mean(0))
            return self.layer(x)

    class Begin(Callback):
        def on_train_step_end(self, run):
            network.late = run.step == 2

    network = Late()
    model, loader = make_model(network, engine=engine), poisson_loader(make_data(), batch_size=16)
    if replaced:  # what a pass binds to a name is gone after it
        model.fit(loader, callbacks=[Begin()])
        assert model.ledger.total == loader.steps_per_epoch
        assert not network.mean.any()
        return
    with pytest.raises((UnprotectedUpdateError, ValueError), match=r"forward pass changed 'mean'|cannot be isolated"):
        model.fit(loader, callbacks=[Begin()])
    assert model.ledger.total == 2


@pytest.mark.parametrize("kind", ["frozen parameter", "data of a buffer", "data of a weight"])
@pytest.mark.parametrize("width", [4, 40_000])
@pytest.mark.sample(6)
def test_statistics_of_the_data_are_found_wherever_they_are_kept(make_model, make_data, kind, width):
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)
            self.centre = nn.Parameter(torch.zeros(width), requires_grad=False)
            self.register_buffer("mean", torch.zeros(4))
            self.late = False

        def forward(self, x):
            if self.late and kind == "frozen parameter":
                with torch.no_grad():
                    self.centre[:4] = x.mean(0)
            elif self.late:
                target = self.mean if kind == "data of a buffer" else self.layer.weight
                target.data.add_(x.detach().mean(0))
            return self.layer(x)

    class Begin(Callback):
        def on_train_step_end(self, run):
            network.late = run.step >= 2

    network = Late()
    model = make_model(network)
    with pytest.raises(ValueError, match="cannot be isolated"):  # a pass that sees one example cannot write there
        model.fit(poisson_loader(make_data(), batch_size=16), epochs=30, callbacks=[Begin()])
    assert model.ledger.total == 2

    network = Late()
    model = make_model(network, engine="loop")
    found = r"the forward pass changed '(centre|mean|layer\.weight)'|outlive the pass"
    with pytest.raises(UnprotectedUpdateError, match=found):
        model.fit(poisson_loader(make_data(), batch_size=16), epochs=30, callbacks=[Begin()])
    assert model.ledger.head(2).violations == ()
    assert model.ledger.total == 2 + len(model.ledger.violations)


@pytest.mark.parametrize("declared", [True, False])
def test_a_buffer_that_a_callback_sets_between_two_steps_must_be_declared(make_model, make_data, declared):
    class Scaled(nn.Linear):
        def __init__(self):
            super().__init__(4, 3)
            self.register_buffer("temperature", torch.ones(()))

        def forward(self, x):
            return super().forward(x) / self.temperature

    class Cool(Callback):
        def on_train_step_end(self, run):
            with run.post_processing("a temperature that follows the step") if declared else nullcontext():
                run.network.temperature.mul_(0.9)

    model = make_model(Scaled())
    if declared:
        model.fit(poisson_loader(make_data(), batch_size=16), callbacks=[Cool()])
        assert model.ledger.total == 4
        assert [note for note in model.ledger.notes if "a temperature that follows the step" in note]
        return
    with pytest.raises(UnprotectedUpdateError, match=r"'temperature' changed between.*run\.post_processing"):
        model.fit(poisson_loader(make_data(), batch_size=16), callbacks=[Cool()])
    assert model.ledger.head(1).violations == ()
    assert "not verified since step 1" in model.ledger.violations[0]


class TestNothingWithoutNoiseReachesTheOptimizer:
    def run_with(self, make_model, loader, act, *, violates=True):
        class Acting(Callback):
            def on_train_step_end(self, run):
                if run.step == 2:
                    act(run)

        model = make_model()
        with pytest.raises(UnprotectedUpdateError) as caught:
            model.fit(loader, callbacks=[Acting()])
        released = model.ledger.total - len(model.ledger.violations)
        assert released == 2
        assert model.ledger.head(2).violations == ()
        assert bool(model.ledger.violations) == violates
        assert math.isinf(model.privacy_spent(1e-5).epsilon) == violates
        return str(caught.value)

    def test_a_backward_outside_is_detected(self, make_model, loader):
        message = self.run_with(
            make_model, loader, lambda run: run.network(torch.randn(2, 4)).sum().backward(), violates=False
        )
        assert "gradient that dpmodel did not make" in message

    def test_an_optimizer_step_outside_is_detected(self, make_model, loader):
        def act(run):
            for parameter in run.network.parameters():
                parameter.grad = torch.ones_like(parameter)
            run.optimizer.step()
            run.optimizer.zero_grad(set_to_none=True)

        assert "changed between two private steps" in self.run_with(make_model, loader, act)

    @pytest.mark.parametrize("own", [True, False])
    def test_a_fused_step_outside_is_detected_though_it_leaves_no_trace_in_versions(self, make_model, loader, own):
        network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, fused=own)
        foreign = optimizer if own else torch.optim.Adam(network.parameters(), fused=True)

        def act(run):
            for parameter in network.parameters():
                parameter.grad = torch.ones_like(parameter)
            before = [parameter._version for parameter in network.parameters()]
            foreign.step()
            assert [parameter._version for parameter in network.parameters()] == before
            foreign.zero_grad(set_to_none=True)

        def make():
            return make_model(network, optimizer=optimizer)

        assert "changed between two private steps" in self.run_with(make, loader, act)

    def test_an_added_parameter_is_detected(self, make_model, loader):
        message = self.run_with(make_model, loader, lambda run: run.network.append(nn.Linear(3, 3)))
        assert "3.weight" in message

    def test_a_replaced_layer_is_detected(self, make_model, loader):
        def act(run):
            run.network[2] = nn.Linear(8, 3)

        assert "replaced" in self.run_with(make_model, loader, act)

    def test_an_optimizer_over_other_parameters_is_refused_before_any_release(self, make_model, loader):
        network, other = nn.Linear(4, 3), nn.Linear(4, 3)
        model = make_model(network, optimizer=torch.optim.SGD(other.parameters(), lr=0.1))
        with pytest.raises(
            UnprotectedUpdateError, match=r"holds no parameter of this network.*before fix\(\)\?.*Build it"
        ):
            model.fit(loader)
        assert model.ledger.total == 0

    def test_foreign_trainable_parameters_in_the_optimizer_are_refused(self, make_model, loader):
        network, other = nn.Linear(4, 3), nn.Linear(4, 3)
        both = [*network.parameters(), *other.parameters()]
        model = make_model(network, optimizer=torch.optim.SGD(both, lr=0.1))
        with pytest.raises(UnprotectedUpdateError, match="not the network's"):
            model.fit(loader)
