"""Convolutions with a standardised weight: the weight is the paper's, and per-example gradients are exact."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dpmodel.nets import StandardisedConv2d
from mechanisms.engines.bookkeeping.call_modes import ByRule
from mechanisms.engines.bookkeeping.layers.standardised import Standardised
from mechanisms.engines.bookkeeping.sites import find_sites


def network(layer, side=6):
    before = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Tanh())
    features = layer(torch.zeros(1, 2, side, side)).numel()
    return nn.Sequential(before, layer, nn.Tanh(), nn.Flatten(), nn.Linear(features, 3))


def batch(dtype=torch.float64, size=5, side=6):
    return torch.randn(size, 2, side, side, dtype=dtype), torch.randint(0, 3, (size,))


def spread(layer):
    """Gains other than 1."""
    nn.init.uniform_(layer.gain, -2, 2)
    return layer


def test_each_channel_has_the_mean_and_the_variance_of_the_paper():
    weight = 3 * torch.randn(4, 2, 3, 3, dtype=torch.float64) + 1
    layer = spread(StandardisedConv2d(2, 4, 3, bias=False).double())
    layer.weight.data.copy_(weight)
    mean, variance = weight.mean((1, 2, 3), keepdim=True), weight.var((1, 2, 3), keepdim=True, correction=0)
    expected = layer.gain.view(-1, 1, 1, 1) * (weight - mean) / (18 * variance).sqrt()
    x = torch.randn(3, 2, 7, 7, dtype=torch.float64)
    torch.testing.assert_close(layer(x), nn.functional.conv2d(x, expected))


@settings(max_examples=12, deadline=None)
@given(st.data(), st.sampled_from([torch.float32, torch.float64]))
def test_gradients_are_exact_for_all_strides_paddings_dilations_and_groups(assert_exact, data, dtype):
    layer = StandardisedConv2d(
        2,
        4,
        data.draw(st.sampled_from([1, 2, 3, (1, 3)])),
        data.draw(st.integers(1, 2)),
        data.draw(st.integers(0, 1)),
        data.draw(st.integers(1, 2)),
        data.draw(st.sampled_from([1, 2])),
        bias=data.draw(st.booleans()),
    )
    if layer.weight[0].numel() == 1:  # a channel of one number is constant
        layer.eps = 1.0
    assert_exact(network(spread(layer)).to(dtype), *batch(dtype))


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e6])
def test_weights_of_any_scale_are_exact(assert_exact, scale):
    layer = spread(StandardisedConv2d(2, 4, 3, padding=1))
    layer.weight.data.mul_(scale).add_(scale)
    assert_exact(network(layer).double(), *batch())


@pytest.mark.parametrize("frozen", [("weight",), ("gain",), ("bias",), ("weight", "bias"), ("weight", "gain")])
def test_frozen_parameters_are_exact(assert_exact, frozen):
    layer = spread(StandardisedConv2d(2, 4, 3))
    for name in frozen:
        getattr(layer, name).requires_grad_(False)
    assert_exact(network(layer).double(), *batch())


def test_a_layer_that_is_called_twice_and_groups_of_examples_are_exact(assert_exact):
    layer = spread(StandardisedConv2d(2, 2, 3, padding=1))
    twice = network(nn.Sequential(layer, nn.Tanh(), layer)).double()
    assert_exact(twice, *batch())
    x, y = batch(size=6)
    assert_exact(network(layer.float()).double(), x, y, group_ids=torch.tensor([0, 0, 1, 2, 2, 2]), units=3)


def test_timed_formulas_are_exact(assert_exact):
    assert_exact(network(spread(StandardisedConv2d(2, 4, 3, padding=1))).double(), *batch(), timed_plans=True)


def test_the_layer_has_a_rule():
    (site,) = find_sites(StandardisedConv2d(2, 4, 3))
    assert isinstance(site.how, ByRule)
    assert set(site.flat_index) == {"weight", "gain", "bias"}


def test_gradients_are_orthogonal_to_the_directions_in_which_the_weight_has_no_effect():
    gradients = torch.randn(3, 4, 18, dtype=torch.float64)
    standardised = Standardised.of(torch.randn(4, 2, 3, 3, dtype=torch.float64), 1e-4)
    rows = standardised.pull_back_(gradients.clone(), standardised.dots(gradients), torch.ones(4))
    torch.testing.assert_close(rows.sum(2), torch.zeros(3, 4, dtype=torch.float64))
    torch.testing.assert_close(standardised.dots(rows), torch.zeros(3, 4, dtype=torch.float64))


def test_a_wrong_eps_is_refused():
    with pytest.raises(ValueError, match="eps must be a positive finite number, got 0"):
        StandardisedConv2d(2, 4, 3, eps=0)
