"""Terms that cancel: every formula gives an example the same norm, whatever else is in its batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mechanisms.clipping import CLIP
from mechanisms.engines import Batch, BookKeepingEngine
from mechanisms.engines.bookkeeping.layers import cancellation, convolution, linear
from mechanisms.engines.bookkeeping.layers.cancellation import CANCELLATION, TermSizes, channel_squares, row_norms
from mechanisms.engines.bookkeeping.layers.rules import Call, rule_for
from mechanisms.engines.bookkeeping.scratch import Scratch
from mechanisms.units import ClippedUnit

#: Largest relative difference of norms: rounding, amplified by terms that cancel as far as the floor allows.
ROUNDING = 3e-4


def opposite(examples, positions, fan_in, fan_out, apart):
    """Terms in pairs of opposite sign that differ by ``apart``."""
    x = torch.randn(examples, positions, fan_in)
    g = torch.randn(examples, positions, fan_out)
    x[:, 1::2], g[:, 1::2] = (1 + apart) * x[:, ::2], -g[:, ::2]
    return x, g


def of_formulas(layer, x, g):
    call, rule = Call(layer, (x,), g, ("weight",), Scratch()), rule_for(layer)
    sizes, formulas = rule.term_sizes(call), rule.formulas(call)["weight"]
    return {each.name: sizes["weight"].raised(each.run(), g.dtype) if sizes else each.run() for each in formulas}


@pytest.mark.parametrize("apart", [1.0, 0.03, 1e-4, 0.0])
@pytest.mark.parametrize("positions", [2, 4, 20])
def test_the_formulas_of_a_linear_layer_give_the_same_norms(positions, apart, monkeypatch):
    monkeypatch.setattr(linear, "GRAM_LIMIT", 1e6)
    layer, (x, g) = nn.Linear(40, 30, bias=False), opposite(5, positions, 40, 30, apart)
    terms = of_formulas(layer, x, g)
    assert set(terms) == {"instantiate", "Gram"}
    padded = of_formulas(layer, *(nn.functional.pad(value, (0, 0, 0, 30)) for value in (x, g)))
    expected = terms["instantiate"].squared_norms.sqrt()
    for found in (*terms.values(), *padded.values()):
        torch.testing.assert_close(found.squared_norms.sqrt(), expected, rtol=ROUNDING, atol=0.0)


def test_a_single_position_is_one_of_several():
    layer, x, g = nn.Linear(40, 30, bias=False), torch.randn(5, 1, 40), torch.randn(5, 1, 30)
    x[1] *= 1e-30
    g[1] *= 1e25
    (alone,) = of_formulas(layer, x, g).values()
    for found in of_formulas(layer, *(nn.functional.pad(value, (0, 0, 0, 3)) for value in (x, g))).values():
        torch.testing.assert_close(found.squared_norms, alone.squared_norms, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("apart", [1.0, 0.03, 1e-4, 0.0])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(40, 30, 1, bias=False), (6,)),
        (nn.Conv1d(12, 16, 3, padding=1, groups=2, bias=False), (6,)),
        (nn.Conv2d(32, 48, 3, padding=1, bias=False), (2, 2)),
        (nn.Conv2d(32, 96, 3, padding=(1, 0), stride=(1, 2), groups=2, bias=False), (3, 5)),
    ],
    ids=["pointwise signal", "signal", "image", "grouped image"],
)
def test_the_formulas_of_a_convolution_give_the_same_norms(layer, shape, apart, monkeypatch):
    monkeypatch.setattr(convolution, "GRAM_LIMIT", 1e6)
    x = torch.ones(4, layer.in_channels, *shape) + apart * torch.randn(4, layer.in_channels, *shape)
    g = torch.randn_like(layer(x))
    g -= g.flatten(2).mean(2).view(*g.shape[:2], *[1] * len(shape))  # as normalisation gives: the terms cancel
    terms = of_formulas(layer, x, g)
    assert {"instantiate", "Gram"} <= set(terms)
    expected = terms["instantiate"].squared_norms.sqrt()
    for found in terms.values():
        torch.testing.assert_close(found.squared_norms.sqrt(), expected, rtol=ROUNDING, atol=0.0)


def test_small_images_never_take_gram_matrices_and_keep_their_exact_norms():
    layer = nn.Conv2d(2, 3, 5, padding=2, bias=False)
    x, g = torch.ones(4, 2, 2, 2), torch.randn(4, 3, 2, 2)
    g -= g.mean((2, 3), keepdim=True)
    terms = of_formulas(layer, x, g)
    assert "Gram" not in terms
    exact = rule_for(layer).example_gradients(Call(layer, (x,), g, ("weight",)))["weight"].flatten(1)
    for found in terms.values():
        torch.testing.assert_close(found.squared_norms.sqrt(), exact.norm(dim=1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("apart", [1.0, 0.03, 1e-4])
def test_a_norm_is_never_below_that_of_the_contribution(apart):
    layer, (x, g) = nn.Linear(40, 30, bias=False), opposite(5, 8, 40, 30, apart)
    exact = torch.bmm(g.double().transpose(1, 2), x.double()).flatten(1).norm(dim=1)
    floor = (x.double().norm(dim=2) * g.double().norm(dim=2)).norm(dim=1) / CANCELLATION
    for found in of_formulas(layer, x, g).values():
        norms = found.squared_norms.double().sqrt()
        assert (norms >= torch.maximum(exact, floor) * (1 - 1e-6)).all()
        assert (norms <= torch.maximum(exact, floor) * (1 + 1e-3)).all()


@settings(deadline=None)
@given(exponent=st.integers(-44, 37), width=st.integers(1, 50), on_gpu=st.booleans(), wide=st.booleans())
def test_norms_of_rows_neither_underflow_nor_overflow(exponent, width, on_gpu, wide):
    rows = torch.randn(3, width, dtype=torch.float64) * 10.0**exponent
    rows[1] = 0.0
    rows = rows if wide else rows.float()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cancellation, "costs_a_wait", lambda value: on_gpu)
        torch.testing.assert_close(row_norms(rows), rows.double().norm(dim=1), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("on_gpu", [False, True])
def test_squares_over_channels_are_those_in_double_precision(on_gpu, monkeypatch):
    monkeypatch.setattr(cancellation, "costs_a_wait", lambda value: on_gpu)
    values = 1e-25 * torch.randn(3, 2, 5, 4, 6)
    kept = values.clone()
    torch.testing.assert_close(channel_squares(values), values.double().square().sum(2), rtol=1e-12, atol=0.0)
    assert torch.equal(values, kept)
    wide = values.double()
    channel_squares(wide)
    assert torch.equal(wide, kept.double())


def test_sizes_do_not_depend_on_padding():
    x, g = opposite(5, 4, 10, 7, 0.1)
    sizes = TermSizes.of(x, g, 9)
    longer = TermSizes.of(*(nn.functional.pad(value, (0, 0, 0, 9)) for value in (x, g)), 9)
    torch.testing.assert_close(longer.sizes[:, :4], sizes.sizes)
    assert not longer.sizes[:, 4:].any()
    assert torch.equal(longer.largest, sizes.largest)


class Summed(nn.Module):
    """A loss that hands each position its gradient."""

    reduction = "mean"

    def forward(self, outputs, targets):
        return (outputs * targets).flatten(1).sum(1)


@pytest.mark.parametrize("clip_name", ["Fixed", "Automatic"])
@pytest.mark.parametrize(("width", "length", "longer"), [(16, 2, 50), (64, 2, 3), (64, 4, 40)])
@pytest.mark.parametrize("layer", ["linear", "signal"])
def test_a_longer_example_does_not_change_what_the_others_contribute(layer, width, length, longer, clip_name):
    network = nn.Linear(width, width, bias=False)
    if layer == "signal":
        network = nn.Sequential(nn.Conv1d(width, width, 1, bias=False))
    x, y = torch.zeros(101, longer, width), torch.zeros(101, longer, width)
    x[:100, :length, 0] = torch.tensor([1.0001, -1.0] * (length // 2))
    y[:100, :length, 0] = 1e6
    x[100] = 1e-3  # its gradient is zero
    if layer == "signal":
        x, y = x.transpose(1, 2), y.transpose(1, 2)
    clip, engine = CLIP.create(clip_name), BookKeepingEngine(ClippedUnit(1, 100))
    clip.start(1.0)

    def summed(examples, positions):
        cut = (
            (slice(examples), slice(positions))
            if layer == "linear"
            else (slice(examples), slice(None), slice(positions))
        )
        return engine.clipped_sum(network, Summed(), Batch(x[cut], y[cut]), clip).flat_grad.clone()

    assert (summed(101, longer) - summed(100, length)).norm() < 0.01


class ByStep(nn.Module):
    """Calls a layer once for each step of a series (B, T, ...)."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, series):
        return torch.stack([self.layer(step) for step in series.unbind(1)], 1)


class AllAtOnce(ByStep):
    """Calls a layer once for all steps, each of which is a row."""

    def forward(self, series):
        return self.layer(series.flatten(0, 1)).unflatten(0, series.shape[:2])


@pytest.mark.parametrize("network", [ByStep, AllAtOnce])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(64, 64, bias=False), (2, 64)),
        (nn.Conv1d(8, 8, 1, bias=False), (8, 2)),
        (nn.Conv2d(64, 64, 1, bias=False), (64, 1, 2)),
        (nn.Conv2d(64, 64, (1, 3), padding=(0, 1), padding_mode="circular", bias=False), (64, 1, 2)),
        (nn.Conv3d(64, 64, 1, bias=False), (64, 1, 1, 2)),
    ],
    ids=["sequences", "small signals", "images", "circular images", "volumes"],
)
def test_the_number_of_calls_and_rows_does_not_change_what_others_contribute(layer, shape, network):
    # Two entries of one step nearly cancel; an example with two steps, whose gradient is zero, makes the others longer.
    x, y = torch.zeros(101, 2, *shape), torch.zeros(101, 2, *shape)
    first = x[:100, 0].movedim(shape.index(max(shape)) + 1, 1)  # channels first
    first.flatten(2)[:, 0] = torch.tensor([1.001, -1.0])
    y[:100, 0].movedim(shape.index(max(shape)) + 1, 1).flatten(2)[:, 0] = 1e6
    clip, engine = CLIP.create("Fixed"), BookKeepingEngine(ClippedUnit(1, 100))
    clip.start(1.0)
    sums = [
        engine.clipped_sum(
            network(layer), Summed(), Batch(x[:count, :steps], y[:count, :steps]), clip
        ).flat_grad.clone()
        for count, steps in ((100, 1), (101, 2))
    ]
    assert sums[0].norm() > 0.1
    assert (sums[0] - sums[1]).norm() < 0.01


@pytest.mark.parametrize("units", [32, 1000])
def test_a_further_member_does_not_change_what_other_units_contribute(units):
    # Two members of each unit nearly cancel; the added one, whose gradient is zero, makes the largest unit larger.
    network, clip = nn.Linear(64, 64, bias=False), CLIP.create("Fixed")
    clip.start(1.0)
    x, y, ids = torch.zeros(2 * units + 1, 64), torch.zeros(2 * units + 1, 64), torch.arange(2 * units + 1) % units
    x[:units, 0], x[units:-1, 0], y[:-1, 0] = 1.06, -1.0, 1e6
    engine = BookKeepingEngine(ClippedUnit(2, units))
    sums = [
        engine.clipped_sum(network, Summed(), Batch(x[:count], y[:count], ids[:count], units), clip).flat_grad
        for count in (2 * units, 2 * units + 1)
    ]
    assert (sums[0] - sums[1]).norm() < 0.01
