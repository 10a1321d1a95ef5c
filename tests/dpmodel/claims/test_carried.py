"""What an optimizer carries from one training into the next."""

import numpy as np
import pytest
import torch
from torch import nn

from dpmodel.claims.carried import carried_by


def stepped(kind, **options):
    network = nn.Linear(2, 2)
    optimizer = kind(network.parameters(), lr=0.1, **options)
    network(torch.ones(3, 2)).sum().backward()
    optimizer.step()
    return optimizer


@pytest.mark.parametrize(
    ("kind", "options", "carries"),
    [
        (torch.optim.SGD, {}, False),
        (torch.optim.SGD, {"momentum": 0.9}, True),
        (torch.optim.Adam, {}, True),
        (torch.optim.RMSprop, {}, True),
    ],
)
def test_an_optimizer_carries_something_if_its_steps_left_numbers(kind, options, carries):
    optimizer = stepped(kind, **options)
    assert (carried_by(optimizer) is not None) == carries
    optimizer.state.clear()
    assert carried_by(optimizer) is None


def test_the_digest_is_that_of_the_values():
    optimizer = stepped(torch.optim.SGD, momentum=0.9)
    before = carried_by(optimizer)
    assert carried_by(optimizer) == before
    for state in optimizer.state.values():
        state["momentum_buffer"].mul_(2)
    assert carried_by(optimizer) not in (before, None)


def test_an_optimizer_inside_another_and_tensors_beside_the_state_are_found():
    class Wrapper(torch.optim.SGD):
        def __init__(self, inner, kept):
            super().__init__([parameter for group in inner.param_groups for parameter in group["params"]], lr=0.1)
            self.inner, self.kept = inner, kept

    plain = stepped(torch.optim.SGD)
    assert carried_by(Wrapper(plain, [])) is None
    assert carried_by(Wrapper(plain, plain.param_groups[0]["params"])) is None
    for kept in ({"means": [torch.ones(2)]}, [np.ones(2)]):
        assert carried_by(Wrapper(plain, kept)) is not None
    assert carried_by(Wrapper(stepped(torch.optim.SGD, momentum=0.9), [])) is not None
