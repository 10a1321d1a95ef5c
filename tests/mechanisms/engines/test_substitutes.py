from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mechanisms.engines.isolation import isolated
from monitors.errors import UnsupportedModuleError

#: The functions that are replaced, as they were.
BEFORE = {name: vars(owner).get(name) for owner, name in [(torch, "empty"), (torch.compiler, "is_compiling")]}


def written(x, fresh):
    fresh[:, :1] = x[:, :1]
    fresh[:, 1:] = 2.0
    return (fresh * x).sum()


ALLOCATES = {
    "empty": lambda x: torch.empty(1, 3, dtype=x.dtype),
    "empty_like": lambda x: torch.empty_like(torch.zeros(1, 3)),
    "new_empty": lambda x: torch.zeros(()).new_empty((1, 3)),
    "of the example": torch.empty_like,
}


@pytest.mark.parametrize("allocate", ALLOCATES.values(), ids=ALLOCATES)
def test_new_memory_can_be_written_to_for_each_example(allocate):
    x = torch.rand(5, 3)
    alone = torch.stack([written(row[None], allocate(row[None])) for row in x])
    assert torch.allclose(isolated(lambda one: written(one, allocate(one)), x), alone)


@pytest.mark.parametrize("draw", [Tensor.bernoulli_, Tensor.uniform_, Tensor.normal_, Tensor.exponential_])
def test_each_example_draws_its_own_numbers_in_place(draw):
    found = isolated(lambda one: (draw(torch.empty(64)) * one.sum()).sum(), torch.ones(9, 1))
    assert len(found.unique()) > 1


def test_memory_that_examples_share_cannot_be_written_to_as_before():
    shared = torch.empty(1, 3)
    with pytest.raises(UnsupportedModuleError):
        isolated(lambda one: shared.copy_(one).sum(), torch.rand(5, 3))


def test_code_of_other_packages_is_told_that_it_cannot_look_at_numbers():
    def function(one):
        return one.sum() if torch.compiler.is_compiling() or (one > 0).all() else one.mean()

    x = torch.rand(5, 3)
    assert torch.equal(isolated(function, x), x.sum(1))
    assert not torch.compiler.is_compiling()


def test_functions_of_torch_are_their_own_outside_of_a_pass_also_after_an_error():
    with pytest.raises(UnsupportedModuleError):
        isolated(lambda one: one.sum() * one.sum().item(), torch.rand(5, 3))
    assert torch.empty is BEFORE["empty"]
    assert torch.compiler.is_compiling is BEFORE["is_compiling"]
    assert "new_empty" not in vars(Tensor)
