from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mechanisms.engines.bookkeeping.pool_first import PoolFirst
from mechanisms.engines.bookkeeping.pooling import pool2x2


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 7), st.integers(2, 7), st.sampled_from([1, 2]), st.sampled_from([torch.float32, torch.float64]))
def test_values_and_gradients_equal_the_librarys_even_for_ties(height, width, stride, dtype):
    x = torch.randint(0, 3, (2, 3, height, width)).to(dtype).requires_grad_()
    expected, found = F.max_pool2d(x, 2, stride), pool2x2(x, stride)
    grad = torch.randn_like(expected)
    assert torch.equal(found, expected)
    (left,), (right,) = torch.autograd.grad(found, x, grad), torch.autograd.grad(expected, x, grad)
    assert torch.allclose(left, right, rtol=1e-6, atol=1e-6)


def test_a_retained_graph_gives_the_same_gradient_again():
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    total = pool2x2(x, 2).square().sum()
    (first,) = torch.autograd.grad(total, x, retain_graph=True)
    (second,) = torch.autograd.grad(total, x)
    assert first.count_nonzero() == x.numel() // 4
    assert torch.equal(first, second)


def test_only_eligible_pooling_is_replaced_and_results_stay_the_same():
    x = torch.randn(2, 3, 9, 9)
    layers = [
        nn.MaxPool2d(2),
        nn.MaxPool2d(2, stride=1),
        nn.MaxPool2d((2, 2), (2, 2)),
        nn.MaxPool2d(3, 2, padding=1),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.MaxPool2d(2, dilation=2),
        nn.MaxPool2d(2, stride=(1, 2)),
    ]
    for layer in layers:
        with PoolFirst():
            found = layer(x.clone().requires_grad_())
        assert torch.equal(found, layer(x))
    with PoolFirst():
        assert type(layers[0](x.clone().requires_grad_()).grad_fn).__name__ == "_PoolBackward"
        values, indices = F.max_pool2d(x, 2, return_indices=True)
    assert indices.dtype == torch.int64
    assert torch.equal(values, layers[0](x))


def test_nan_stays_nan():
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, 1, 1] = float("nan")
    assert pool2x2(x, 2).isnan().flatten().tolist() == [True, False, False, False]
