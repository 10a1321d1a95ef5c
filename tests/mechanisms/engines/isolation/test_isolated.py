from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mechanisms.engines.isolation.isolated import example_of, isolated, on_batch, rows_of
from mechanisms.engines.isolation.rows import on_rows
from monitors.errors import UnsupportedModuleError

FUNCTIONS = {
    "centred": lambda x: (x - x.mean(0, keepdim=True)).sum(),
    "largest": lambda x: (x / x.max()).sum(),
    "permuted": lambda x: (x[torch.randperm(len(x))] * x).sum(),
    "sorted": lambda x: (x.sort(0).values * x).sum(),
    "cumulated": lambda x: x.cumsum(0).square().sum(),
    "softmax": lambda x: (x.softmax(0) * x).sum(),
    "size": lambda x: x.sum() if len(x) < 2 else x.sum() * 100,
}


@pytest.mark.parametrize("name", FUNCTIONS)
@given(rows=st.integers(1, 6), seed=st.integers(0, 2**20))
def test_the_result_of_an_example_does_not_depend_on_the_others(name, rows, seed):
    draws = torch.Generator().manual_seed(seed)
    x = torch.rand(rows, 3, generator=draws) + 0.1
    whole = isolated(FUNCTIONS[name], x)
    alone = torch.stack([FUNCTIONS[name](row.unsqueeze(0)) for row in x])
    assert torch.allclose(whole, alone)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.sum() if x.max() > 1 else x.mean(),
        lambda x: x.sum() * x.sum().item(),
        lambda x: x.sum() * float(x.sum()),
        lambda x: x[x > 0].sum(),
        lambda x: x.sum() if torch.isfinite(x).all() else x.mean(),
        lambda x: torch.zeros(3).add_(x[0]).sum(),
        lambda x: x.sum() + x.detach().numpy().sum(),
        lambda x: x.unique().sum(),
    ],
)
def test_code_that_depends_on_values_or_stores_them_cannot_run(function):
    with pytest.raises(UnsupportedModuleError, match="cannot be isolated"):
        isolated(function, torch.rand(4, 3))


def test_an_error_of_the_function_itself_propagates_unchanged():
    def faulty(x):
        raise RuntimeError("no such layer")

    with pytest.raises(RuntimeError, match=r"^no such layer$"):
        isolated(faulty, torch.rand(4, 3))


class Mixing(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x * 1.0

    @staticmethod
    def setup_context(ctx, inputs, output):
        """Save nothing."""

    @staticmethod
    def backward(ctx, grad):
        return grad

    @staticmethod
    def vmap(info, in_dims, x):
        return x - x.mean(0), 0


def test_a_function_whose_rule_receives_the_whole_batch_is_refused_inside_a_pass():
    x = torch.rand(4, 3)
    with pytest.raises(UnsupportedModuleError, match="Mixing has a custom vmap rule"):
        isolated(lambda one: Mixing.apply(one).sum(), x)
    assert torch.allclose(torch.func.vmap(Mixing.apply)(x), x - x.mean(0))
    assert torch.equal(Mixing.apply(x), x)


def test_an_operator_whose_rule_receives_the_whole_batch_is_refused_inside_a_pass():
    @torch.library.custom_op("dpmodel_tests::doubled", mutates_args=())
    def doubled(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    doubled.register_vmap(lambda info, in_dims, x: (x - x.mean(0), 0))
    with pytest.raises(UnsupportedModuleError, match="dpmodel_tests::doubled has a custom vmap rule"):
        isolated(lambda one: doubled(one).sum(), torch.rand(4, 3))
    x = torch.rand(4, 3)
    assert torch.allclose(torch.func.vmap(doubled)(x), x - x.mean(0))


def test_hooks_on_saved_tensors_are_refused():
    def packed(x):
        with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, lambda saved: saved):
            return (x * x).sum()

    with pytest.raises((UnsupportedModuleError, RuntimeError), match="saved tensor hooks"):
        isolated(packed, torch.rand(4, 3, requires_grad=True))


def test_each_example_draws_its_own_random_numbers():
    assert len(isolated(lambda x: torch.rand(()) + 0 * x.sum(), torch.zeros(50, 1)).unique()) > 40


def test_rows_can_be_unwrapped_processed_and_wrapped_again():
    layer, x = nn.Linear(3, 2), torch.rand(5, 3)

    def of_one(one):
        rows = rows_of(one)
        assert rows.shape == (5, 1, 3)
        assert rows_of(layer.weight) is None
        with on_batch():
            found = layer(rows)
        return example_of(found).sum()

    assert torch.allclose(isolated(of_one, x), layer(x).sum(1))


def test_functions_of_rows_accept_values_that_examples_share():
    weights, x = torch.rand(1, 3), torch.rand(5, 3)

    def of_one(one):
        return on_rows(torch.mul, one, weights).sum()

    assert torch.allclose(isolated(of_one, x), (x * weights).sum(1))
    assert torch.equal(on_rows(torch.mul, x, weights), x * weights)


def test_a_layer_inside_a_further_transform_is_refused():
    def nested(one):
        return torch.func.vmap(lambda part: on_rows(F.relu, part.unsqueeze(0)).sum())(one).sum()

    with pytest.raises(UnsupportedModuleError, match=r"a torch\.func transform"):
        isolated(nested, torch.rand(4, 3))


def test_the_autograd_graph_is_closed_inside_a_pass_only():
    weight = torch.ones(3, requires_grad=True)

    def through_the_graph(one):
        return (one * weight).sum() * (1.0 if (one * weight).grad_fn is None else 2.0)

    with pytest.raises(UnsupportedModuleError, match="grad_fn"):
        isolated(through_the_graph, torch.rand(4, 3))
    value = weight * 2
    value.register_hook(lambda grad: grad * 0)
    assert value.grad_fn is not None
    assert "grad_fn" not in vars(torch.Tensor)
