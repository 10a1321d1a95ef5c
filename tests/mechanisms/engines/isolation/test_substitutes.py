from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mechanisms.engines.isolation.isolated import isolated
from mechanisms.engines.isolation.substitutes import shared_draws
from monitors.errors import UnsupportedModuleError

#: The original functions.
BEFORE = {"empty": torch.empty, "rand": torch.rand, "is_compiling": torch.compiler.is_compiling}


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
def test_new_memory_can_be_written_for_each_example(allocate):
    x = torch.rand(5, 3)
    alone = torch.stack([written(row[None], allocate(row[None])) for row in x])
    assert torch.allclose(isolated(lambda one: written(one, allocate(one)), x), alone)


@pytest.mark.parametrize("draw", [Tensor.bernoulli_, Tensor.uniform_, Tensor.normal_, Tensor.exponential_])
def test_each_example_draws_its_own_numbers_in_place(draw):
    found = isolated(lambda one: (draw(torch.empty(64)) * one.sum()).sum(), torch.ones(9, 1))
    assert len(found.unique()) > 1


def test_memory_that_examples_share_still_cannot_be_written():
    shared = torch.empty(1, 3)
    with pytest.raises(UnsupportedModuleError):
        isolated(lambda one: shared.copy_(one).sum(), torch.rand(5, 3))


def test_is_compiling_is_true_for_other_packages():
    def function(one):
        return one.sum() if torch.compiler.is_compiling() or (one > 0).all() else one.mean()

    x = torch.rand(5, 3)
    assert torch.equal(isolated(function, x), x.sum(1))
    assert not torch.compiler.is_compiling()


def left_out(one):
    return one.sum() if torch.rand([]) < 0.5 else one.sum() * 0


def test_a_drawn_number_can_decide_for_all_examples():
    x = torch.rand(5, 3) + 1
    with pytest.raises(UnsupportedModuleError, match="control flow"):
        isolated(left_out, x)
    with shared_draws():
        found = torch.stack([isolated(left_out, x) for _ in range(100)])
        drawn = isolated(lambda one: one.sum() * 0 + torch.rand(()), x)
        several = isolated(lambda one: one.sum() * 0 + torch.rand(1), x)
        with pytest.raises(UnsupportedModuleError, match="control flow"):
            isolated(lambda one: left_out(one) if one.sum() > 0 else one.sum(), x)
    kept = (found > 0).all(1)
    assert torch.equal(kept, (found > 0).any(1))
    assert 0 < kept.sum() < 100
    assert len(drawn.unique()) == 1
    assert len(several.unique()) == 5


def test_functions_of_torch_are_restored_after_a_pass_even_after_an_error():
    with pytest.raises(UnsupportedModuleError):
        isolated(lambda one: one.sum() * one.sum().item(), torch.rand(5, 3))
    assert torch.empty is BEFORE["empty"]
    assert torch.rand is BEFORE["rand"]
    assert torch.compiler.is_compiling is BEFORE["is_compiling"]
    assert "new_empty" not in vars(Tensor)
