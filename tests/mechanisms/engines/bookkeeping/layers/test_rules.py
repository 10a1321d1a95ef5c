from __future__ import annotations

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dpmodel.nets import StandardisedConv2d
from mechanisms.engines import LAYER_RULES, Batch, BookKeepingEngine, layer_rule
from mechanisms.engines.bookkeeping.call_modes import ByExample, ByRewrite, ByRule
from mechanisms.engines.bookkeeping.layers import REWRITES, convolution, embedding, linear
from mechanisms.engines.bookkeeping.layers.cancellation import CANCELLATION, ROUNDINGS
from mechanisms.engines.bookkeeping.layers.linear import LinearRule, _gram
from mechanisms.engines.bookkeeping.layers.rules import Call
from mechanisms.engines.bookkeeping.layers.window_gram import WindowAxis, window_gram
from mechanisms.engines.bookkeeping.sites import find_sites
from mechanisms.units import ClippedUnit

SHORT = settings(max_examples=12, deadline=None)
DTYPES = st.sampled_from([torch.float32, torch.float64])


class Pooled(nn.Module):
    """A layer under test between two smooth maps, so that its input and its output gradient are non-trivial."""

    def __init__(self, before, layer, features, index=None):
        super().__init__()
        self.before, self.layer, self.index = before, layer, index
        self.head = nn.Linear(features, 3)

    def forward(self, x):
        h = self.layer(self.before(x) if self.before is not None else x)
        h = torch.tanh(h[self.index] if self.index is not None else h)
        weights = torch.linspace(-1, 1, h[0].numel() // self.head.in_features, dtype=h.dtype)
        h = h.flatten(2) @ weights if h.dim() > 2 else h
        return self.head(h)


def batch(dtype, *shape, size=4):
    return torch.randn(size, *shape, dtype=dtype), torch.randint(0, 3, (size,))


@SHORT
@given(DTYPES, st.integers(1, 6), st.integers(1, 6), st.integers(0, 5), st.booleans())
def test_linear_layers_on_vectors_and_sequences_are_exact(assert_exact, dtype, inputs, outputs, positions, bias):
    layer = nn.Linear(inputs, outputs, bias=bias)
    shape = (inputs,) if not positions else (positions, inputs)
    network = nn.Sequential(nn.Linear(inputs, inputs), nn.Tanh(), layer, nn.Tanh(), nn.Flatten())
    network.append(nn.Linear(outputs * max(positions, 1), 3)).to(dtype)
    assert_exact(network, *batch(dtype, *shape))


CONVOLUTIONS = [nn.Conv1d, nn.Conv2d, nn.Conv3d]
TRANSPOSED = [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]


@settings(max_examples=24, deadline=None)
@given(st.data(), DTYPES, st.integers(1, 3))
def test_convolutions_are_exact_for_all_strides_paddings_dilations_and_groups(assert_exact, data, dtype, dims):
    groups = data.draw(st.sampled_from([1, 2]))
    stride, dilation = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2))
    padding = data.draw(st.sampled_from(["same", "valid", 0, 1] if stride == 1 else [0, 1]))
    mode = data.draw(
        st.sampled_from(["zeros", "reflect", "replicate", "circular"] if dims < 3 else ["zeros", "circular"])
    )
    kernel, side = data.draw(st.integers(1, 3)), data.draw(st.integers(5, 7))
    layer = CONVOLUTIONS[dims - 1](
        2, 4, kernel, stride, padding, dilation, groups, bias=data.draw(st.booleans()), padding_mode=mode
    )
    before = nn.Sequential(CONVOLUTIONS[dims - 1](2, 2, 1), nn.Tanh())
    assert_exact(Pooled(before, layer, 4).to(dtype), *batch(dtype, 2, *[side] * dims))


@settings(max_examples=12, deadline=None)
@given(st.data(), DTYPES, st.integers(1, 3))
def test_transposed_convolutions_are_exact(assert_exact, data, dtype, dims):
    stride, groups = data.draw(st.integers(1, 2)), data.draw(st.sampled_from([1, 2]))
    layer = TRANSPOSED[dims - 1](
        4,
        2,
        data.draw(st.integers(1, 3)),
        stride,
        padding=0 if stride == 1 else data.draw(st.integers(0, 1)),
        output_padding=stride - 1,
        groups=groups,
        bias=data.draw(st.booleans()),
        dilation=2,
    )
    before = nn.Sequential(CONVOLUTIONS[dims - 1](4, 4, 1), nn.Tanh())
    assert_exact(Pooled(before, layer, 2).to(dtype), *batch(dtype, 4, *[4] * dims))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("side", [1, 2])
def test_convolutions_on_few_positions_use_gram_matrices_and_stay_exact(assert_exact, clip, side, groups):
    layer = nn.Conv2d(32, 48, 3, padding=1, groups=groups)
    network = Pooled(nn.Sequential(nn.Conv2d(4, 32, 1), nn.Tanh()), layer, 48)
    x, y = batch(torch.float32, 4, side, side)
    assert_exact(network, x, y)
    engine = BookKeepingEngine(ClippedUnit(1, 4))
    engine.clipped_sum(network, nn.CrossEntropyLoss(), Batch(x, y), clip)
    assert {key[0]: choice.formula for key, choice in engine.formulas.choices.items() if key[1] == "weight"}[
        "layer"
    ] == "Gram"


GRAM_OPTIONS = [
    {},
    {"groups": 2},
    {"padding_mode": "circular"},
    {"stride": (1, 2)},
    {"padding": (2, 1), "dilation": (2, 1)},
    {"kernel_size": 2, "padding": "same"},
    {"kernel_size": 1, "padding": 0},
]


@pytest.mark.parametrize("add", ["_add_by_library", "_add_by_windows"])
@pytest.mark.parametrize("options", GRAM_OPTIONS, ids=str)
@pytest.mark.sample(14)
def test_both_sums_of_gram_convolutions_are_exact(assert_exact, monkeypatch, options, add):
    used, original = [], getattr(convolution, add)
    monkeypatch.setattr(convolution, "GRAM_LIMIT", 1e6)
    monkeypatch.setattr(convolution, "SMALLEST_FOR_GRAMS", 1)
    monkeypatch.setattr(convolution, "DOUBLE_COST", 0.0)
    monkeypatch.setattr(convolution, "_add_by_library", lambda *args: used.append(original(*args)))
    layer = nn.Conv2d(32, 48, **{"kernel_size": 3, "padding": 1} | options)
    network = Pooled(nn.Sequential(nn.Conv2d(4, 32, 1), nn.Tanh()), layer, 48)
    assert_exact(network, *batch(torch.float32, 4, 3, 2))
    assert_exact(network.double(), *batch(torch.float64, 4, 3, 2))
    assert used


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 3))
def test_window_gram_equals_the_inner_products_of_the_windows(data, dims):
    kernel, stride, dilation, padding = (
        tuple(data.draw(st.integers(low, high)) for _ in range(dims)) for low, high in ((1, 4), (1, 3), (1, 2), (0, 3))
    )
    padding = tuple(min(pad, spread * (size - 1)) for pad, spread, size in zip(padding, dilation, kernel, strict=True))
    sizes = [
        data.draw(st.integers(max(1, (k - 1) * d + 1 - 2 * p), 8))
        for k, d, p in zip(kernel, dilation, padding, strict=True)
    ]
    layer = CONVOLUTIONS[dims - 1](2, 1, kernel, stride, padding, dilation, dtype=torch.float64)
    x = torch.randn(2, 2, *sizes, dtype=torch.float64)
    positions = layer(x).shape[2:]
    axes = [WindowAxis(*axis) for axis in zip(sizes, positions, kernel, stride, dilation, padding, strict=True)]
    windows = convolution._columns(layer, x).squeeze(1)
    assert torch.allclose(window_gram(x, axes), windows.transpose(1, 2) @ windows)
    for index, axis in enumerate(axes):
        by_offset = windows.unflatten(1, (2, *kernel)).movedim(2 + index, 0)
        without_data = torch.ones(axis.kernel, dtype=torch.bool)
        without_data[axis.offsets_with_data()] = False
        assert not by_offset[without_data].any()


def raised_gram(x, g):
    sizes = LinearRule().term_sizes(Call(None, (x,), g, ("weight",)))["weight"]
    return sizes.raised(_gram(x, g), g.dtype)


@pytest.mark.parametrize("apart", [0.3, 1e-3])
def test_gram_norms_bound_the_sum_when_positions_cancel(apart):
    x, g = torch.randn(3, 1, 64), torch.randn(3, 1, 32)
    x, g = torch.cat([x, x + apart * torch.randn_like(x)], 1), torch.cat([g, -g], 1)
    exact = torch.bmm(g.double().transpose(1, 2), x.double()).flatten(1).norm(dim=1)
    found, sizes = raised_gram(x, g).squared_norms.double().sqrt(), x.double().norm(dim=2) * g.double().norm(dim=2)
    # The norm includes the rounding error of the sum in float32, and what the terms do to the sums of other examples.
    rounding = (ROUNDINGS + 2) * torch.finfo(torch.float32).eps / 2 * sizes.sum(1)
    assert torch.allclose(found, torch.maximum(exact + rounding, sizes.norm(dim=1) / CANCELLATION), rtol=1e-6)
    assert (found > 10 * exact).all() if apart < 0.1 else (found < 1.001 * exact).all()


@pytest.mark.parametrize("examples", [401, 4001])
def test_terms_that_cancel_hardly_round_what_other_examples_add(examples):
    # Blocks of the matrix product may end between two opposite terms, wherever they end.
    step, length, width = 192, 5, 16
    x, g = torch.zeros(examples, length, width), torch.zeros(examples, length, width)
    x[:, :, 0], g[:, :, 0] = 1.0, 2.0**-9 * 1.001
    for row in range(step, examples * length, step):
        if row % length:
            g[row // length] = 0
            g[row // length, row % length - 1, 0], g[row // length, row % length, 0] = 60_000.0, -60_000.0
    g[0] = 0

    def summed(x, g):
        term, out = raised_gram(x, g), torch.zeros(width * width)
        term.add_to(out, term.squared_norms.rsqrt().clamp(max=1.0))
        return out.double()

    assert (summed(x, g) - summed(x[1:], g[1:])).norm() < 0.05


def test_inputs_whose_weighted_gradients_underflow_are_left_out():
    x, g = torch.full((2, 4, 8), 3e38), torch.full((2, 4, 8), 1e-43)
    x[1] = 1e18
    assert raised_gram(x, g).squared_norms.isinf().tolist() == [True, False]


@pytest.mark.parametrize("offset", [1e3, 1e4, 1e5, 1e6, 1e7, 1e8])
@pytest.mark.parametrize(("batch", "length", "width"), [(64, 64, 64), (16, 64, 128), (256, 16, 48)])
def test_a_long_sequence_whose_terms_cancel_respects_the_bound(batch, length, width, offset):
    # The first and last terms are huge and opposite; all rows of the other examples are added between them.
    def summed(x, g):
        term, out = raised_gram(x, g), torch.zeros(width * width)
        term.add_to(out, term.squared_norms.rsqrt().clamp(max=1.0))
        return out.double()

    for mine in (0, 5, 11):
        x, g, ends = torch.randn(batch, length, width), 0.1 * torch.randn(batch, length, width), 3 * torch.randn(width)
        x[mine] += offset
        g[mine] = 0
        g[mine, 0], g[mine, -1] = ends, -ends
        others = torch.arange(batch) != mine
        assert (summed(x, g) - summed(x[others], g[others])).norm() <= 1.0001


@pytest.mark.parametrize("offset", [1e2, 1e4, 1e6, 1e8])
@pytest.mark.parametrize("examples", [4, 32])
def test_an_image_whose_terms_cancel_respects_the_bound(examples, offset):
    layer = nn.Conv2d(64, 48, 3, padding=1)

    def summed(x, g):
        term = convolution._term_sizes(layer, x, g).raised(convolution._gram(layer, x, g), g.dtype)
        out = torch.zeros(layer.weight.numel())
        term.add_to(out, term.squared_norms.rsqrt().clamp(max=1.0))
        return out.double()

    x, g, ends = torch.randn(examples, 64, 8, 8), 0.1 * torch.randn(examples, 48, 8, 8), 3 * torch.randn(48)
    x[2] += offset
    g[2] = 0
    g[2, :, 1, 1], g[2, :, -2, -2] = ends, -ends
    others = torch.arange(examples) != 2
    assert (summed(x, g) - summed(x[others], g[others])).norm() <= 1.0001


@pytest.mark.parametrize("examples", [7, 8, 21])
def test_products_over_many_rows_split_into_parts_are_exact(assert_exact, monkeypatch, examples):
    monkeypatch.setattr(linear, "LARGE_PRODUCT", 1)
    for dtype in (torch.float32, torch.float64):
        assert_exact(nn.Linear(9, 3).to(dtype), *batch(dtype, 9, size=examples))


class Positions(nn.Module):
    """The same tokens for all examples, as in tables of positions."""

    def __init__(self, tokens, padding_idx=None):
        super().__init__()
        self.table, self.head = nn.Embedding(9, 4, padding_idx), nn.Linear(4, 3)
        self.register_buffer("shared", torch.tensor(tokens))

    def forward(self, x):
        return self.head((x * self.table(self.shared.unsqueeze(0))).sum(1))


@pytest.mark.sample(12)
@pytest.mark.parametrize("tokens", [[0, 1, 2, 3, 4], [7, 2, 5, 1, 8], [1, 1, 3, 0, 1]])
@pytest.mark.parametrize("padding_idx", [None, 1])
@pytest.mark.parametrize("on_gpu", [False, True])
def test_tables_read_at_the_same_rows_by_all_examples_are_exact(
    assert_exact, clip, tokens, padding_idx, on_gpu, monkeypatch
):
    monkeypatch.setattr(embedding, "costs_a_wait", lambda value: on_gpu)
    network = Positions(tokens, padding_idx)
    x, y = batch(torch.float32, 5, 4)
    assert_exact(network, x, y)
    assert_exact(network.double(), x.double(), y)
    engine = BookKeepingEngine(ClippedUnit(1, 4))
    engine.clipped_sum(network, nn.CrossEntropyLoss(), Batch(x.double(), y), clip)
    (choice,) = [choice for key, choice in engine.formulas.choices.items() if key[0] == "table"]
    assert choice.formula == ("first places" if on_gpu else "same tokens" if len(set(tokens)) == 5 else "segments")


def as_on_a_gpu(value):
    """Instead of a mock, which would keep its arguments alive."""
    del value
    return True


@SHORT
@given(DTYPES, st.integers(2, 7), st.integers(1, 6), st.sampled_from([None, 0, 1]))
def test_embeddings_add_the_gradients_of_repeated_tokens_and_skip_the_padding(
    assert_exact, dtype, vocabulary, length, padding
):
    network = Pooled(None, nn.Embedding(vocabulary, 4, padding_idx=padding), length).to(dtype)
    tokens = torch.randint(0, vocabulary, (5, length))
    assert_exact(network, tokens, torch.randint(0, 3, (5,)))
    with mock.patch.object(embedding, "costs_a_wait", as_on_a_gpu):
        assert_exact(network, tokens, torch.randint(0, 3, (5,)))


@SHORT
@given(DTYPES, st.sampled_from(["sum", "mean", "max"]), st.sampled_from([None, 0]))
def test_bags_of_embeddings_are_exact(assert_exact, dtype, mode, padding):
    network = Pooled(None, nn.EmbeddingBag(6, 4, mode=mode, padding_idx=padding), 4).to(dtype)
    assert_exact(network, torch.randint(0, 6, (5, 3)), torch.randint(0, 3, (5,)))


NORMS = {
    "layer": lambda affine: nn.LayerNorm([4, 5], elementwise_affine=affine),
    "layer, last dimension": lambda affine: nn.LayerNorm(5, elementwise_affine=affine),
    "group": lambda affine: nn.GroupNorm(2, 4, affine=affine),
    "instance": lambda affine: nn.InstanceNorm1d(4, affine=affine),
    "root mean square": lambda affine: nn.RMSNorm(5, elementwise_affine=affine),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NORMS)
def test_norm_layers_are_exact(assert_exact, name, dtype):
    network = Pooled(nn.Sequential(nn.Conv1d(4, 4, 1), nn.Tanh()), NORMS[name](True), 4).to(dtype)
    assert_exact(network, *batch(dtype, 4, 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(
    "make",
    [
        lambda bf: nn.LSTM(5, 4, 2, batch_first=bf, bidirectional=True),
        lambda bf: nn.LSTM(5, 6, batch_first=bf, proj_size=4),
        lambda bf: nn.GRU(5, 4, 2, batch_first=bf, bidirectional=True, bias=False),
        lambda bf: nn.RNN(5, 4, batch_first=bf, nonlinearity="relu"),
    ],
)
@pytest.mark.sample(16)
def test_recurrent_layers_are_exact(assert_exact, make, batch_first, dtype):
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.core = make(batch_first)
            self.head = nn.LazyLinear(3)

        def forward(self, x):
            h = self.core(x if batch_first else x.transpose(0, 1))[0]
            return self.head(h.mean(1 if batch_first else 0))

    network = Reader()
    x, y = batch(torch.float32, 6, 5)
    network(x)
    assert_exact(network.to(dtype), x.to(dtype), y, relative=2e-5 if dtype == torch.float32 else None)


@pytest.mark.parametrize("make", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_recurrent_cells_are_exact(assert_exact, make):
    class Unrolled(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = make(5, 4), nn.Linear(4, 3)

        def forward(self, x):
            state = None
            for step in x.unbind(1):
                state = self.cell(step, state)
            return self.head(state[0] if isinstance(state, tuple) else state)

    assert_exact(Unrolled(), *batch(torch.float32, 4, 5))


def test_a_module_without_a_rule_runs_example_by_example(assert_exact):
    class Shift(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(4))

        def forward(self, x):
            return x + self.bias

    network = nn.Sequential(nn.Linear(5, 4), Shift(), nn.Tanh(), nn.Linear(4, 3))
    assert isinstance(find_sites(network)[1].how, ByExample)
    assert_exact(network, *batch(torch.float32, 5))


@pytest.mark.parametrize("padding_idx", [None, 0, -1])
def test_a_table_with_a_custom_forward_pass_has_no_gradient_at_the_padding(assert_exact, padding_idx):
    class Scaled(nn.Embedding):
        def forward(self, tokens):
            return 3.0 * super().forward(tokens)

    network = nn.Sequential(Scaled(4, 5, padding_idx=padding_idx), nn.Flatten(), nn.Linear(30, 3))
    assert isinstance(find_sites(network)[0].how, ByExample)
    assert_exact(network, torch.randint(0, 4, (6, 6)), torch.arange(6) % 3)


def test_parametrized_layers_are_exact(assert_exact):
    network = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(5, 4)), nn.Tanh(), nn.Linear(4, 3))
    assert_exact(network, *batch(torch.float32, 5))


class Scale(nn.Module):
    """A user's own layer."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, width))

    def forward(self, x):
        return x * self.weight


def test_a_user_adds_a_rule_in_three_lines_and_it_is_used(assert_exact):
    network = nn.Sequential(nn.Linear(5, 4), Scale(4), nn.Tanh(), nn.Linear(4, 3))
    try:

        @layer_rule(Scale)
        def scale(call):
            return {"weight": call.inputs[0] * call.output_grad}

        assert isinstance(find_sites(network)[1].how, ByRule)
        assert_exact(network, *batch(torch.float32, 5))
    finally:
        LAYER_RULES.pop(Scale)


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        (lambda product: -product if product.max() > 9 else product, "cannot be isolated"),
        (lambda product: product * float(product.sum()), "cannot be isolated"),
        (lambda product: product.squeeze(0), "the first dimension must count examples"),
    ],
)
def test_a_rule_that_reads_values_or_returns_no_rows_is_refused_by_the_layers_name(rule, reason):
    network, example = nn.Sequential(nn.Linear(5, 4), Scale(4)), Batch(*batch(torch.float32, 5))
    layer_rule(Scale)(lambda call: {"weight": rule(call.inputs[0] * call.output_grad)})
    try:
        refusal = BookKeepingEngine.refuses(network, nn.CrossEntropyLoss(), ClippedUnit(1, 4), example)
    finally:
        del LAYER_RULES[Scale]
    assert "the layer rule of Scale" in refusal
    assert reason in refusal


def test_a_wrong_rule_is_refused_by_the_layers_name():
    network = nn.Sequential(nn.Linear(5, 4), Scale(4), nn.Tanh(), nn.Linear(4, 3))
    x, y = batch(torch.float32, 5)
    try:
        layer_rule(Scale)(lambda call: {"weight": 2 * call.inputs[0] * call.output_grad})
        reason = BookKeepingEngine.refuses(network, nn.CrossEntropyLoss(), ClippedUnit(1, 4), Batch(x, y))
        assert "layer '1'" in reason
    finally:
        LAYER_RULES.pop(Scale)


def test_a_subclass_with_its_own_forward_does_not_inherit_the_rule(assert_exact):
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    network = nn.Sequential(Doubled(5, 4), nn.Tanh(), nn.Linear(4, 3))
    assert isinstance(find_sites(network)[0].how, ByExample)
    assert_exact(network, *batch(torch.float32, 5))


def test_every_registered_rule_and_rewrite_has_a_test():
    covered = {nn.Linear, *CONVOLUTIONS, *TRANSPOSED, nn.Embedding, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm}
    covered |= {nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d}
    covered |= {StandardisedConv2d}  # in test_standardised.py
    assert set(LAYER_RULES) == covered
    recurrent = {nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell}
    assert set(REWRITES) == recurrent | {nn.MultiheadAttention, nn.EmbeddingBag}
    assert isinstance(find_sites(nn.LSTM(2, 2))[0].how, ByRewrite)


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 3), st.integers(1, 2), st.integers(1, 2))
def test_kernels_with_offsets_that_see_only_padding_are_exact(assert_exact, side, kernel, padding, stride, dilation):
    if side + 2 * padding < dilation * (kernel - 1) + 1:
        return
    layer = nn.Conv2d(16, 24, kernel, stride, padding, dilation)
    network = Pooled(nn.Sequential(nn.Conv2d(4, 16, 1), nn.Tanh()), layer, 24)
    assert_exact(network, *batch(torch.float32, 4, side, side))
