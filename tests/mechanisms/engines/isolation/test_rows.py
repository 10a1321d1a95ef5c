"""For any shapes, a kernel for the whole batch gives the results of one example at a time, or refuses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mechanisms.clipping import Fixed
from mechanisms.engines import Batch, BookKeepingEngine, LoopEngine
from mechanisms.engines.bookkeeping.layers.attention import attention_by_rows
from mechanisms.engines.bookkeeping.pool_first import PoolFirst
from mechanisms.engines.isolation.isolated import isolated
from mechanisms.engines.isolation.rows import Layout, lie_alike, on_rows
from mechanisms.units import ClippedUnit
from monitors.errors import UnsupportedModuleError

MANY = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])

#: So small that the numbers of examples, rows, channels and positions are often equal, and easily confused.
SIZES = st.integers(1, 3)

#: Errors of PyTorch for unsupported shapes.
ERRORS = (RuntimeError, ValueError, IndexError, AssertionError)


def alone(function, *nests):
    """Results of one example at a time, or the error of the first that fails."""
    return [function(*(value[row : row + 1] for value in nests)) for row in range(len(nests[0]))]


def require_alike(function, *nests):
    try:
        expected = torch.stack(alone(function, *nests))
    except ERRORS:
        with pytest.raises((*ERRORS, UnsupportedModuleError)):
            isolated(function, *nests)
        return
    try:
        found = isolated(function, *nests)
    except UnsupportedModuleError:
        return
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@given(st.integers(1, 4), st.none() | st.integers(1, 3), st.booleans())
def test_rows_of_an_example_are_contiguous_and_come_from_it_alone(examples, each, shared):
    layout, shape = Layout(examples, each), (() if each is None else (each,)) + (2,)
    x = torch.randn(examples, *shape)
    constant = torch.randn(shape)

    def of_one(one):
        value = constant if shared else one.squeeze(0)
        rows = layout.gather(value)
        assert rows.shape == (layout.count, 2)
        for b in range(examples):
            for i in range(each or 1):
                source = constant if shared else x[b]
                assert torch.equal(rows[b * (each or 1) + i], source if each is None else source[i])
        assert torch.equal(layout.spread(rows), constant.expand_as(x) if shared else x)
        return one.sum()

    isolated(of_one, x)


@pytest.mark.parametrize("shape", [(), (3,), (3, 2), (4, 2)])
def test_inputs_and_outputs_without_all_rows_are_refused(shape):
    layout = Layout(4, 2)

    def of_one(one):
        layout.gather(torch.zeros(shape))
        return one.sum()

    with pytest.raises(UnsupportedModuleError, match="does not hold 2 plain rows"):
        isolated(of_one, torch.zeros(4, 1))
    with pytest.raises(UnsupportedModuleError, match="one row for each"):
        layout.spread(torch.zeros(shape))


def test_tensors_that_run_custom_code_never_receive_the_batch():
    class Own(Tensor):
        pass

    rows, own = torch.zeros(1, 3), torch.zeros(1, 3).as_subclass(Own)
    assert not lie_alike(rows, own)

    def by_layout(one):
        Layout(4, 1).gather(own)
        return one.sum()

    for function in (by_layout, lambda one: on_rows(torch.add, one, own).sum()):
        with pytest.raises(UnsupportedModuleError):
            isolated(function, torch.zeros(4, 3))


def shapes(most):
    return st.lists(SIZES, max_size=most).map(tuple)


@st.composite
def attentions(draw):
    """A number of examples, and for query, key, value and mask a shape and whether the examples share it."""
    size, places, keys, width = (draw(SIZES) for _ in range(4))
    leading = draw(shapes(2))
    tails = {"query": (places, width), "key": (keys, width), "value": (keys, width), "mask": (places, keys)}
    given = {}
    for name, tail in tails.items():
        usual = draw(st.booleans())
        front = leading if usual else draw(shapes(3))
        front = tuple(draw(st.sampled_from([length, 1, size])) for length in front)
        given[name] = ((*front, *tail), draw(st.booleans()))
    if draw(st.booleans()):
        given["mask"] = None
    return size, given


@MANY
@given(attentions(), st.booleans())
def test_attention_equals_that_of_one_example_at_a_time_for_all_shapes(case, learnt):
    size, shapes = case
    constants = {name: torch.randn(shape, requires_grad=learnt) for name, (shape, shared) in _named(shapes) if shared}
    rows = {name: torch.randn(size, *shape) for name, (shape, shared) in _named(shapes) if not shared}

    def attend(x, *values, function=attention_by_rows):
        own = dict(zip(rows, (value.squeeze(0) for value in values), strict=True))
        query, key, value, mask = ({**constants, **own}.get(name) for name in ("query", "key", "value", "mask"))
        return function(query, key, value, attn_mask=mask) + x.sum()

    nests = (torch.randn(size, 1), *rows.values())
    require_alike(attend, *nests)
    if shapes["mask"] is not None and len(shapes["mask"][0]) > len(shapes["query"][0]):
        return  # PyTorch accepts some of these, but here they are refused
    torch.testing.assert_close(
        _or_none(lambda: attend(*(n[:1] for n in nests))),
        _or_none(lambda: attend(*(n[:1] for n in nests), function=F.scaled_dot_product_attention)),
        rtol=1e-4,
        atol=1e-5,
    )


def _named(shapes):
    return [(name, entry) for name, entry in shapes.items() if entry is not None]


def _or_none(call):
    try:
        return call()
    except RuntimeError:
        return torch.zeros(0)


@MANY
@given(SIZES, shapes(5), st.sampled_from([F.max_pool2d, F.max_pool1d]), st.sampled_from([1, 2]), st.booleans())
def test_pooling_equals_that_of_one_example_at_a_time_for_all_shapes(size, shape, function, stride, waits):
    def pool(x):
        with PoolFirst(None if waits else frozenset()):
            return function(torch.relu(x.squeeze(0)), 2, stride) * 1.0

    require_alike(pool, torch.randn(size, *(length + 1 for length in shape)))


LAYERS = {
    "Linear": lambda n: nn.Linear(n, 3),
    "Conv1d": lambda n: nn.Conv1d(n, 2, 1),
    "Conv2d": lambda n: nn.Conv2d(n, 2, 1),
    "Conv3d": lambda n: nn.Conv3d(n, 2, 1),
    "ConvTranspose1d": lambda n: nn.ConvTranspose1d(n, 2, 2),
    "ConvTranspose2d": lambda n: nn.ConvTranspose2d(n, 2, 2),
    "LayerNorm": lambda n: nn.LayerNorm((2, n)),
    "RMSNorm": lambda n: nn.RMSNorm(n),
    "GroupNorm": lambda n: nn.GroupNorm(1, n),
    "InstanceNorm1d": lambda n: nn.InstanceNorm1d(n, affine=True),
    "InstanceNorm2d": lambda n: nn.InstanceNorm2d(n, affine=True),
    "Embedding": lambda n: nn.Embedding(4, n),
    "EmbeddingBag": lambda n: nn.EmbeddingBag(4, n),
    "LSTM": lambda n: nn.LSTM(n, 2, batch_first=True),
    "GRUCell": lambda n: nn.GRUCell(n, 2),
    "MultiheadAttention": lambda n: nn.MultiheadAttention(2 * n, 2, batch_first=True),
}


class Shaped(nn.Module):
    """A layer that receives an example without a batch dimension, of any shape, or a constant."""

    def __init__(self, layer, constant):
        super().__init__()
        self.layer = layer
        self.register_buffer("constant", constant)

    def forward(self, x):
        x = x.squeeze(0) if self.constant is None else self.constant
        tokens = isinstance(self.layer, (nn.Embedding, nn.EmbeddingBag))
        x = (x.abs() * 9).long() % 4 if tokens else x
        attends = isinstance(self.layer, nn.MultiheadAttention)
        found = self.layer(x, x, x, need_weights=False) if attends else self.layer(x)
        return found[0] if isinstance(found, tuple) else found


def per_example(outputs, y):
    return (outputs * torch.linspace(0.5, 1.5, outputs.numel()).view(outputs.shape)).sin().sum() * (1 + y.sum())


@pytest.mark.parametrize("name", LAYERS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SIZES, SIZES, shapes(5), st.booleans())
@pytest.mark.sample(16)
def test_layers_equal_those_of_one_example_at_a_time_for_all_shapes(name, size, width, shape, shared):
    torch.manual_seed(0)
    layer = LAYERS[name](width).double()
    network = Shaped(layer, torch.randn(shape).double() if shared else None)
    batch = Batch(torch.randn(size, *shape).double(), torch.arange(size))
    clip = Fixed()
    clip.start(0.5)
    try:
        expected = LoopEngine(ClippedUnit(1, size)).clipped_sum(network, per_example, batch, clip)
    except ERRORS as error:
        if "more than 1 value per channel" in str(error):  # PyTorch counts the rows for nothing: the values are zero
            return
        with pytest.raises((*ERRORS, UnsupportedModuleError)):
            BookKeepingEngine(ClippedUnit(1, size)).clipped_sum(network, per_example, batch, clip)
        return
    try:
        found = BookKeepingEngine(ClippedUnit(1, size)).clipped_sum(network, per_example, batch, clip)
    except UnsupportedModuleError:
        return
    torch.testing.assert_close(found.flat_grad, expected.flat_grad)
    torch.testing.assert_close(found.norms, expected.norms)
