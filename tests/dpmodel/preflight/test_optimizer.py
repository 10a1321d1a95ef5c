from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn, optim
from torch.optim import lr_scheduler
from torch.utils.data import TensorDataset

from dpmodel import Callback, LearningRateScheduler
from dpmodel.optimizers import optimizer_names
from dpmodel.preflight.optimizer import require_same_parameters, require_steps, require_whole_schedule
from monitors.errors import ConfigError, NonFiniteGradientsError, UnprotectedUpdateError, UnsupportedModuleError


def made(name="SGD", lr=0.1, **options):
    network = nn.Linear(3, 2, bias=name != "Muon")
    return getattr(optim, name)(network.parameters(), lr=lr, **options)


@pytest.mark.parametrize("flag", [None, "foreach", "capturable", "differentiable", "maximize"])
@pytest.mark.parametrize("name", sorted(set(optimizer_names()) & set(vars(optim))))
def test_an_optimizer_is_refused_before_training_if_and_only_if_its_step_would_fail(name, flag):
    try:
        optimizer = made(name, **({flag: True} if flag else {}))
    except (TypeError, ValueError, RuntimeError):
        return  # torch itself refuses it
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    before = [p.detach().clone() for p in parameters]
    refused, state = "", str(optimizer.state_dict())
    try:
        require_steps(optimizer)
    except ValueError as error:
        refused = str(error)
    assert all(torch.equal(p, value) and p.grad is None for p, value in zip(parameters, before, strict=True))
    assert str(optimizer.state_dict()) == state
    for p in parameters:
        p.grad = torch.zeros_like(p)
    try:
        optimizer.step()
    except Exception:
        assert f"{flag}=True" in refused
    else:
        assert not refused


def test_an_optimizer_whose_step_needs_a_closure_is_refused():
    class TwoPasses(optim.SGD):
        def step(self, closure):
            closure()

    optimizer = TwoPasses(nn.Linear(3, 2).parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"TwoPasses.*A closure would compute the loss again"):
        require_steps(optimizer)


def test_the_step_of_a_different_package_is_not_tried():
    class Counting(optim.SGD):
        steps = 0

        def step(self, closure=None):
            type(self).steps += 1
            return super().step(closure)

    require_steps(Counting(nn.Linear(3, 2).parameters(), lr=0.1))
    assert Counting.steps == 0


def test_flags_are_refused_before_any_budget_is_spent(make_model, loader):
    network = nn.Linear(4, 3)
    model = make_model(network, optimizer=optim.Adam(network.parameters(), lr=0.1, differentiable=True))
    with pytest.raises(ValueError, match="differentiable=True"):
        model.fit(loader)
    assert len(model.ledger) == 0


SCHEDULES = {
    "one cycle": lambda optimizer, length: lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=length),
    "in sequence": lambda optimizer, length: lr_scheduler.SequentialLR(
        optimizer,
        [lr_scheduler.ConstantLR(optimizer), lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=length - 2)],
        [2],
    ),
    "listed": lambda optimizer, length: lr_scheduler.LambdaLR(optimizer, ([0.1] * (length + 1)).__getitem__),
}


@pytest.mark.parametrize("kind", SCHEDULES)
@settings(max_examples=10, deadline=None)
@given(length=st.integers(4, 20), steps=st.integers(1, 25))
def test_a_schedule_is_refused_if_and_only_if_it_ends_before_the_training(kind, length, steps):
    optimizer = made(momentum=0.9)
    schedule = SCHEDULES[kind](optimizer, length)
    rate, stand = optimizer.param_groups[0]["lr"], schedule.last_epoch
    if steps > length:
        with pytest.raises(ValueError, match=rf"ends before the training: it fails at step \d+ of {steps}"):
            require_whole_schedule(schedule, steps, "step")
    else:
        require_whole_schedule(schedule, steps, "step")
    assert (optimizer.param_groups[0]["lr"], schedule.last_epoch) == (rate, stand)


def test_a_function_that_counts_its_calls_does_not_notice_the_trial():
    calls, rates = [], iter([1.0] * 6)

    class Warm:
        data = TensorDataset(torch.zeros(3))

        def __init__(self):
            self.seen = 0

        def rate(self, step):
            self.seen += 1
            return step / len(self.data)

    def counted(step):
        calls.append(step)
        return 1.0

    warm = Warm()
    for function in (counted, lambda step: counted(step), lambda step: next(rates), warm.rate):
        schedule = lr_scheduler.LambdaLR(made(), function)
        before = len(calls), warm.seen
        require_whole_schedule(schedule, 5, "epoch")
        assert (len(calls), warm.seen) == before
    assert len(list(rates)) == 5


def test_a_schedule_that_cannot_be_copied_ends_the_training_before_a_rate_that_is_not_finite(make_model, loader):
    class Fixed(lr_scheduler.LRScheduler):
        def get_lr(self):
            return [float("nan") if self.last_epoch == 6 else 0.1]

        def __deepcopy__(self, memo):
            raise TypeError("no copies")

    model = make_model()
    with pytest.raises(ConfigError, match="lr must be a finite number, got nan"):
        model.fit(loader, epochs=2, callbacks=[LearningRateScheduler(Fixed(model.optimizer))])
    assert model.ledger.total == 6


def test_a_rate_below_zero_is_refused_but_rounding_is_not():
    require_whole_schedule(lr_scheduler.LambdaLR(made(), lambda step: 1 - step / 7 - 1e-12), 8, "step")
    with pytest.raises(ConfigError, match=r"at step 8 of 8, optimizer 'SGD': lr must be at least 0, got -0\.016"):
        require_whole_schedule(lr_scheduler.LambdaLR(made(), lambda step: 1 - step / 6), 8, "step")
    require_whole_schedule(lr_scheduler.LambdaLR(made(), lambda step: 1 - step / 6), 7, "step")


def test_weights_that_are_not_finite_are_refused_before_any_budget_is_spent(make_model, loader):
    model = make_model(network := nn.Linear(4, 3))
    with torch.no_grad():
        network.weight[0, 0] = float("nan")
    with pytest.raises(UnsupportedModuleError, match=r"parameter\(s\) weight of the network are NaN"):
        model.fit(loader)
    assert model.ledger.total == 0


def test_weights_that_become_infinite_end_the_training_with_an_error(make_model, loader):
    class Explode(Callback):
        def on_train_step_begin(self, run):
            run.optimizer.param_groups[0]["weight_decay"] = 1e38

    model = make_model()
    with pytest.raises(NonFiniteGradientsError, match=r"after 4 steps, which are charged, the parameter\(s\) 0"):
        model.fit(loader, epochs=3, callbacks=[Explode()])
    assert model.ledger.total == 4


@pytest.mark.parametrize(("interval", "length"), [("step", 7), ("epoch", 1)])
def test_a_short_schedule_is_refused_before_any_budget_is_spent(make_model, loader, interval, length):
    model = make_model()
    schedule = lr_scheduler.OneCycleLR(model.optimizer, 1.0, total_steps=length)
    with pytest.raises(ValueError, match=f"at {interval} {length + 1} of "):
        model.fit(loader, epochs=2, callbacks=[LearningRateScheduler(schedule, interval=interval)])
    assert len(model.ledger) == 0


def test_a_schedule_that_is_too_short_by_its_arguments_is_refused_too(make_model, loader):
    model = make_model()
    with pytest.raises(ValueError, match="ends before the training"):
        model.fit(loader, epochs=2, callbacks=[LearningRateScheduler("OneCycleLR", max_lr=1.0, total_steps=3)])
    assert len(model.ledger) == 0


@pytest.mark.parametrize(
    ("layers", "named"),
    [
        (3, r"parameter\(s\) 1\.weight, 1\.bias, 2\.weight, 2\.bias of the network"),
        (5, r"parameter\(s\) 1\.weight, 1\.bias, 2\.weight, 2\.bias, 3\.weight and 3 more of the network"),
    ],
)
def test_at_most_five_missing_parameters_of_the_optimizer_are_named(layers, named):
    network = nn.Sequential(*[nn.Linear(1, 1) for _ in range(layers)])
    with pytest.raises(UnprotectedUpdateError, match=named):
        require_same_parameters(network, torch.optim.SGD(network[0].parameters(), lr=0.1))
