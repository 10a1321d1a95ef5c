from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from dpmodel.guard import UpdateGuard
from monitors.errors import UnprotectedUpdateError


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
    with pytest.raises(UnprotectedUpdateError, match="changed between two private steps"):
        last.check()


def test_a_guard_counts_the_steps_of_other_optimizers_over_its_parameters_alone():
    network, _, guard = guarded()
    stepped(*guarded()[:2])
    guard.check()
    stepped(network, torch.optim.Adam(network.parameters(), fused=True))
    with pytest.raises(UnprotectedUpdateError):
        guard.check()
