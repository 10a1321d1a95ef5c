import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpmodel.optimizers import (
    LENGTH_ARGUMENT,
    REFUSED_OPTIMIZERS,
    REFUSED_SCHEDULERS,
    Momentum,
    build_optimizer,
    build_scheduler,
    optimizer_names,
    scheduler_names,
)

SCHEDULER_ARGUMENTS = {
    "StepLR": {"step_size": 2},
    "MultiStepLR": {"milestones": [2, 4]},
    "ExponentialLR": {"gamma": 0.9},
    "CyclicLR": {"base_lr": 0.1, "max_lr": 1.0},
    "OneCycleLR": {"max_lr": 1.0},
}


def weight():
    return torch.nn.Parameter(torch.ones(3, 2))


def sgd():
    return build_optimizer("SGD", [weight()], lr=1.0, momentum=0.9)


@pytest.mark.parametrize("name", optimizer_names())
def test_every_optimizer_is_built_by_name_and_moves_the_weights(name):
    parameter = weight()
    optimizer = build_optimizer(name, [parameter], learning_rate=0.1)
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert not torch.equal(parameter, torch.ones(3, 2))
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_the_names_include_all_of_torch_except_refused_ones():
    assert {"SGD", "Momentum", "Adam", "AdamW", "RMSprop", "Adagrad"} <= set(optimizer_names())
    assert not set(REFUSED_OPTIMIZERS) & set(optimizer_names())
    assert "Optimizer" not in optimizer_names()


@settings(deadline=None)
@given(st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=6), st.floats(0, 0.99))
def test_momentum_moves_as_sgd_with_momentum(gradients, momentum):
    ours, theirs = weight(), weight()
    first = Momentum([ours], learning_rate=0.1, momentum=momentum)
    second = torch.optim.SGD([theirs], lr=0.1, momentum=momentum)
    for value in gradients:
        ours.grad, theirs.grad = torch.full_like(ours, value), torch.full_like(theirs, value)
        first.step()
        second.step()
    # Where the steps cancel, what is left is the rounding of sums up to ten.
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "fused"),
    [
        ("SGD", {"lr": 0.1}, True),
        ("Momentum", {"lr": 0.1}, True),
        ("Adam", {"lr": 0.1}, True),
        ("AdamW", {"lr": 0.1, "foreach": True}, None),
        ("SGD", {"lr": 0.1, "fused": False}, False),
        ("RMSprop", {"lr": 0.1}, None),
    ],
)
def test_the_fused_form_is_used_if_there_is_one_and_nothing_else_was_requested(name, options, fused):
    groups = ({"params": iter([weight()])} for _ in range(2))
    optimizer = build_optimizer(name, groups, **options)
    assert optimizer.defaults.get("fused") == fused
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 1]


def test_parameters_that_the_fused_form_does_not_support_use_the_plain_one():
    assert build_optimizer("SGD", [torch.nn.Parameter(torch.zeros(2, device="meta"))], lr=0.1).defaults["fused"] is None


def test_momentum_is_the_tutorials_spelling_with_its_default():
    network = torch.nn.Linear(2, 1)
    optimizer = Momentum(params=network.parameters(), learning_rate=0.01)
    assert (optimizer.defaults["lr"], optimizer.defaults["momentum"]) == (0.01, 0.9)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("Adan", {"lr": 0.1}, "did you mean 'Adam'"),
        ("sgd", {"lr": 0.1}, "did you mean 'SGD'"),
        ("SGD", {"lr": 0.1, "momentun": 0.9}, "no argument 'momentun'; did you mean 'momentum'"),
        ("SGD", {"lr": 0.1, "momentun": 0.9}, r"takes: lr \(or learning_rate\), momentum, "),
        ("Momentum", {"lr": 0.1, "momentun": 0.9}, r"takes: lr \(or learning_rate\), momentum, "),
        ("Momentum", {"lr": 0.1, "momentum": 1.5}, "momentum must be in"),
        ("Momentum", {"lr": 0.1, "momentum": 1}, "momentum must be below 1"),
        ("Momentum", {"lr": -0.1}, "learning_rate must be a positive finite number, got -0.1"),
        ("Momentum", {"lr": float("nan")}, "learning_rate must be a positive finite number"),
        ("SGD", {"lr": -0.1}, "Invalid learning rate: -0.1"),
        ("SGD", {"lr": 0.1, "learning_rate": 0.2}, "mean the same; give one"),
        ("Adam", {"lr": "fast"}, "lr must be a number, got 'fast'"),
        ("Adam", {"lr": 0.1, "betas": "fast"}, "cannot be built from"),
        ("LBFGS", {"lr": 0.1}, "evaluates the loss several times .*; use SGD, Momentum or Adam"),
        ("SparseAdam", {"lr": 0.1}, "a noisy gradient is dense"),
    ],
)
def test_wrong_names_and_arguments_are_refused_with_the_reason(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        build_optimizer(name, [weight()], **arguments)


@pytest.mark.parametrize("name", scheduler_names())
def test_every_scheduler_is_built_by_name_and_stepped_through_the_training(name):
    optimizer = sgd()
    scheduler = build_scheduler(name, optimizer, 10, 5, **SCHEDULER_ARGUMENTS.get(name, {}))
    for _ in range(10):
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] >= 0


@pytest.mark.parametrize("name", sorted(LENGTH_ARGUMENT))
def test_the_length_is_filled_in_if_omitted_and_kept_if_given(name):
    own = SCHEDULER_ARGUMENTS.get(name, {})
    argument = LENGTH_ARGUMENT[name]
    filled = build_scheduler(name, sgd(), 77, **own)
    given = build_scheduler(name, sgd(), 77, **own, **{argument: 33})
    assert getattr(filled, argument) == 77
    assert getattr(given, argument) == 33


def test_one_cycle_by_epochs_gets_the_steps_of_one():
    assert build_scheduler("OneCycleLR", sgd(), 100, 20, max_lr=1.0, epochs=3).total_steps == 60


def test_a_linear_decay_ends_at_its_end_factor():
    optimizer = sgd()
    scheduler = build_scheduler("LinearLR", optimizer, 4, start_factor=1.0, end_factor=0.0)
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([1.0, 0.75, 0.5, 0.25])


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("LinarLR", {}, "did you mean 'LinearLR'"),
        ("LinearLR", {"end": 0.0}, "no argument 'end'"),
        ("StepLR", {}, "needs the argument 'step_size'"),
        ("LinearLR", {"start_factor": 7.0}, "cannot be built from"),
        *[(name, {}, "cannot be built by name") for name in REFUSED_SCHEDULERS],
    ],
)
def test_wrong_schedulers_are_refused_with_the_reason(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        build_scheduler(name, sgd(), 10, **arguments)


def test_a_training_without_steps_has_no_schedule():
    with pytest.raises(ValueError, match="total_steps must be an integer of at least 1, got 0"):
        build_scheduler("LinearLR", sgd(), 0)
