from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mechanisms.clipping import Fixed
from mechanisms.engines import Batch, BookKeepingEngine
from mechanisms.engines.bookkeeping.layers import attention
from mechanisms.engines.bookkeeping.layers.short_attention import SHORT, is_short, short_self_attention
from mechanisms.units import ClippedUnit


def of_the_library(packed, heads, mask=None):
    parts = packed.split(packed.shape[2] // 3, dim=-1)
    q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in parts)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def assert_as_the_library(packed, heads, mask=None):
    before, grad = packed.detach().clone(), torch.randn(*packed.shape[:2], packed.shape[2] // 3, dtype=packed.dtype)
    packed = packed.detach().requires_grad_()
    found, expected = short_self_attention(packed, heads, mask), of_the_library(packed, heads, mask)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, packed, grad)[0] for value in (found, expected)))
    assert torch.equal(packed.detach(), before)


@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 3), st.integers(1, 5), st.booleans())
@settings(max_examples=60, deadline=None)
def test_short_attention_equals_the_librarys_attention_for_all_shapes(size, positions, heads, width, masked):
    torch.manual_seed(size + 10 * positions + 100 * heads + 1000 * width)
    packed = torch.randn(size, positions, 3 * heads * width, dtype=torch.float64)
    mask = torch.randn(size, 1, positions, positions, dtype=torch.float64) if masked else None
    assert_as_the_library(packed, heads, mask)


def test_sequence_first_inputs_are_accepted():
    assert_as_the_library(torch.randn(7, 3, 24, dtype=torch.float64).transpose(0, 1), 2)


@pytest.mark.parametrize("shape", [(5, 5), (3, 1, 5, 5), (3, 2, 5, 5), (3, 1, 1, 5)])
def test_masked_positions_do_not_count_and_fully_masked_queries_give_zeros(shape):
    mask = torch.zeros(shape, dtype=torch.float64).masked_fill_(torch.rand(shape) < 0.5, -math.inf)
    mask[..., -1, :] = -math.inf
    assert_as_the_library(torch.randn(3, 5, 24, dtype=torch.float64), 2, mask)


def test_a_non_finite_example_does_not_affect_others():
    packed = torch.randn(3, 5, 24)
    broken = packed.clone()
    broken[1, 2] = math.nan
    found, other = (short_self_attention(value, 2) for value in (packed, broken))
    assert torch.equal(found[[0, 2]], other[[0, 2]])
    assert other[1].isnan().any()


def test_the_library_is_used_where_it_is_faster_or_more_exact():
    packed = torch.zeros(2, 6, 12)
    assert is_short(packed, None)
    assert is_short(packed.double(), torch.zeros(6, 6))
    assert not is_short(torch.zeros(2, SHORT + 1, 12), None)
    assert not is_short(packed.bfloat16(), None)
    assert not is_short(packed, torch.zeros(6, 6, requires_grad=True))
    assert not is_short(packed.to("meta"), None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not is_short(packed, None)


@pytest.mark.parametrize(("dropout", "used"), [(0.0, True), (0.1, False)])
def test_an_encoder_uses_short_attention_unless_weights_are_dropped(monkeypatch, dropout, used):
    calls = []

    def counted(*args):
        calls.append(True)  # the arguments would outlive the pass
        return short_self_attention(*args)

    monkeypatch.setattr(attention, "short_self_attention", counted)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=dropout, batch_first=True)
    network, clip = nn.Sequential(layer, nn.Flatten(), nn.Linear(48, 3)), Fixed()
    clip.start(1.0)
    batch = Batch(torch.randn(4, 6, 8), torch.arange(4) % 3)
    BookKeepingEngine(ClippedUnit(1, 4)).clipped_sum(network, nn.CrossEntropyLoss(), batch, clip)
    assert bool(calls) is used
