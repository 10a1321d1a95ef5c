"""Swapped modules, forward methods and hooks are named; changes that do not affect the passes are not."""

import types

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR

from dpmodel.claims.structure import Structure


def built():
    network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Sequential(nn.Linear(3, 2)))
    loss = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    return network, loss, optimizer, Structure({"": network, "(loss)": loss}, optimizer)


def replace_layer(network, loss, optimizer):
    network[1] = nn.Tanh()


def append_layer(network, loss, optimizer):
    network.append(nn.Linear(2, 2))


def remove_layer(network, loss, optimizer):
    del network[1]


def swap_forward(network, loss, optimizer):
    network[0].forward = types.MethodType(lambda module, x: x, network[0])


def forward_hook(network, loss, optimizer):
    network[2].register_forward_hook(lambda *args: None)


def pre_hook(network, loss, optimizer):
    network.register_forward_pre_hook(lambda *args: None)


def backward_hook(network, loss, optimizer):
    network[0].register_full_backward_hook(lambda *args: None)


def loss_hook(network, loss, optimizer):
    loss.register_forward_hook(lambda *args: None)


def optimizer_hook(network, loss, optimizer):
    optimizer.register_step_post_hook(lambda *args: None)


@pytest.mark.parametrize(
    ("act", "named"),
    [
        (replace_layer, "'1' was replaced (ReLU with Tanh)"),
        (append_layer, "'3' was added"),
        (remove_layer, "'2' was removed"),
        (swap_forward, "forward method or the hooks of '0'"),
        (forward_hook, "hooks of '2'"),
        (pre_hook, "hooks of 'the network'"),
        (backward_hook, "hooks of '0'"),
        (loss_hook, "hooks of '(loss)'"),
        (optimizer_hook, "hooks of the optimizer"),
    ],
)
def test_a_change_is_named(act, named):
    network, loss, optimizer, structure = built()
    act(network, loss, optimizer)
    assert named in "; ".join(structure.changes())


def test_hooks_of_torch_for_all_modules_are_seen():
    *_, structure = built()
    handle = nn.modules.module.register_module_forward_hook(lambda *args: None)
    try:
        assert structure.changes()
    finally:
        handle.remove()
    assert structure.changes() == []


def test_modes_schedules_values_and_temporary_hooks_are_not_changes():
    network, _loss, optimizer, structure = built()
    network.eval()
    schedule = StepLR(optimizer, 1)
    optimizer.step()
    schedule.step()
    with torch.no_grad():
        network[0].weight.zero_()
    network[0].register_forward_hook(lambda *args: None).remove()
    network[0].note = "an attribute"
    optimizer.state[network[0].weight]["momentum_buffer"] = torch.zeros(3, 2)
    assert structure.changes() == []


def test_hooks_that_were_there_before_may_stay():
    network = nn.Sequential(nn.Linear(2, 2))
    network[0].register_forward_hook(lambda *args: None)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    optimizer.register_step_pre_hook(lambda *args: None)
    assert Structure({"": network}, optimizer).changes() == []


def no_change(network):
    network[0].weight.grad = torch.zeros(3, 2)


def count_up(network):
    network[0].calls = getattr(network[0], "calls", 0) + 1


def rename_to_forward(network):
    """The same objects in the same order, but one of them now hides a method."""
    kept = network[0].kept
    del network[0].kept
    network[0].forward = kept


def own_class(network):
    network[0].__class__ = type("Own", (nn.Linear,), {})


def class_forward(network):
    type(network).forward = lambda module, x: x


def late_hook(network):
    network[0].register_forward_hook(lambda *args: None)


def gradient_hook(network):
    network[0].weight.register_hook(lambda grad: grad)


def new_table(network):
    hook = {1: lambda *args: None}
    network[0].__dict__["_forward_hooks"] = hook


CHANGES = (rename_to_forward, own_class, class_forward, late_hook, gradient_hook, new_table)


@pytest.mark.parametrize("act", [no_change, count_up, *CHANGES])
@pytest.mark.parametrize("looked_before", [False, True])
def test_a_quick_look_sees_what_a_full_one_sees(act, looked_before):
    class Own(nn.Sequential):
        forward = nn.Sequential.forward

    network = Own(nn.Linear(2, 3), nn.ReLU())
    network[0].kept = lambda x: x
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    structure = Structure({"": network}, optimizer)
    if looked_before:
        assert not structure.changed()
        count_up(network)
        assert not structure.changed()
    act(network)
    for _ in range(2):
        assert structure.changed() == (act in CHANGES) == bool(structure.changes())
