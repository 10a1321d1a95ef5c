"""Operators with unreachable kernels are refused by name at the call."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch._ops import OpOverload, OpOverloadPacket

from mechanisms.engines.state.operators import FollowedOperators
from monitors.errors import UnprotectedUpdateError

LIBRARY = torch.library.Library("dpmodel_test_operators", "DEF")
OPERATORS = torch.ops.dpmodel_test_operators


def doubled(x):
    return x * 2


for key in ("CPU", "CompositeImplicitAutograd", "CompositeExplicitAutograd", "Autograd"):
    LIBRARY.define(f"by_{key}(Tensor x) -> Tensor")
    LIBRARY.impl(f"by_{key}", doubled, key)
torch.library.define("dpmodel_test_operators::without_library", "(Tensor x) -> Tensor")
torch.library.impl("dpmodel_test_operators::without_library", "cpu")(doubled)


@torch.library.custom_op("dpmodel_test_operators::followed", mutates_args=())
def followed(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@torch.library.custom_op("dpmodel_test_operators::replaced", mutates_args=())
def replaced(x: torch.Tensor) -> torch.Tensor:
    return x * 2


followed.register_autograd(lambda ctx, grad: grad * 2)
followed.register_fake(lambda x: torch.empty_like(x))
LIBRARY.impl("replaced", doubled, "CPU", allow_override=True)

OUT_OF_REACH = [
    *("by_CPU", "by_CompositeImplicitAutograd", "by_CompositeExplicitAutograd", "by_Autograd"),
    *("without_library", "replaced"),
]


@pytest.mark.parametrize("name", OUT_OF_REACH)
def test_an_operator_with_an_unreachable_kernel_is_refused_by_name(name):
    packet = getattr(OPERATORS, name)
    for call in (packet, packet.default):
        with pytest.raises(UnprotectedUpdateError, match=f"operators::{name} has"), FollowedOperators():
            call(torch.ones(2))
    assert packet(torch.ones(1)).tolist() == [2.0]


def test_a_refusal_that_is_caught_is_raised_at_the_end():
    with pytest.raises(UnprotectedUpdateError, match="by_CPU"), FollowedOperators(), contextlib.suppress(Exception):
        OPERATORS.by_CPU(torch.ones(2))


def test_reachable_operators_and_those_of_packages_are_called():
    x = torch.ones(2, requires_grad=True)
    with FollowedOperators(), FollowedOperators():
        (
            followed(x) + OPERATORS.followed(x) + torch.ops.aten.relu(x) + torch.ops.aten.add.Tensor(x, x)
        ).sum().backward()
    assert x.grad.tolist() == [7.0, 7.0]


def test_calls_of_operators_are_restored_afterwards():
    before = OpOverload.__call__, OpOverloadPacket.__call__
    with FollowedOperators():
        assert OpOverload.__call__ is not before[0]
    assert (OpOverload.__call__, OpOverloadPacket.__call__) == before
