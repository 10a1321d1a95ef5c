"""Fused attention receives tensors of all examples, which know whether they require a gradient.

On a GPU, the kernel keeps the logarithms of its sums, which its backward pass needs, only if queries, keys or values
require a gradient. The tensor of one example under ``torch.func.vmap`` never does, and the backward pass then fails
with "LSE is not correctly aligned (strideH)".
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision.models.vision_transformer import VisionTransformer

from mechanisms.engines import Batch, BookKeepingEngine, LoopEngine
from mechanisms.engines.bookkeeping.call_modes import ByExample
from mechanisms.engines.bookkeeping.pool_first import PoolFirst
from mechanisms.engines.bookkeeping.sites import find_sites
from mechanisms.engines.isolation.isolated import isolated
from mechanisms.units import ClippedUnit

_functorch = torch._C._functorch


def would_keep_its_sums(query, key, value):
    """The condition that torch tests before it launches the fused kernel."""
    plain = not any(map(_functorch.is_functorch_wrapped_tensor, (query, key, value)))
    return plain and torch.is_grad_enabled() and any(part.requires_grad for part in (query, key, value))


class Watched(TorchFunctionMode):
    """Results of ``would_keep_its_sums``, and layouts of the gradients that attention receives."""

    def __init__(self):
        super().__init__()
        self.kept, self.layouts = [], []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if func is F.scaled_dot_product_attention and torch.is_grad_enabled():
            self.kept.append(would_keep_its_sums(*args[:3]))
            if found.requires_grad:
                found.register_hook(lambda grad: self.layouts.append((grad.shape, grad.stride())))
        return found


class OwnAttention(nn.Module):
    """Attention as users write it."""

    def __init__(self):
        super().__init__()
        self.qkv, self.head = nn.Linear(8, 24), nn.Linear(8, 3)

    def forward(self, x):
        q, k, v = (part.unflatten(2, (2, 4)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        return self.head(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).mean(1))


def vision_transformer():
    network = VisionTransformer(16, 4, 2, 4, 16, 32, num_classes=3)
    nn.init.normal_(network.heads.head.weight, std=0.1)  # torchvision's head starts at zero, which blocks the gradient
    return network


CASES = {
    "vision transformer": (vision_transformer, (3, 16, 16)),
    "encoder layer": (lambda: Encoder(200), (200, 8)),
    "own attention": (OwnAttention, (13, 8)),
}


class Encoder(nn.Module):
    """Sequences too long for ``short_self_attention``."""

    def __init__(self, length):
        super().__init__()
        self.position = nn.Parameter(torch.randn(length, 8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.layer(x + self.position).mean(1))


@pytest.mark.parametrize("case", CASES)
def test_fused_attention_sees_the_rows_of_all_examples(case, clip, monkeypatch):
    monkeypatch.setattr("mechanisms.engines.bookkeeping.layers.attention.is_short", lambda *args: False)  # as on a GPU
    make, shape = CASES[case]
    network, x, y, unit = make(), torch.randn(4, *shape), torch.arange(4) % 3, ClippedUnit(1, 4)
    engine, batch = BookKeepingEngine(unit), Batch(x, y)
    engine.clipped_sum(network, nn.CrossEntropyLoss(), batch, clip)  # with its trial passes
    # This test must see what modes may not see in training.
    monkeypatch.setattr("mechanisms.engines.modes._is_ours", lambda mode: True)
    monkeypatch.setattr(torch._C, "DisableTorchFunction", nullcontext)
    with Watched() as watched:
        found = engine.clipped_sum(network, nn.CrossEntropyLoss(), batch, clip)
    expected = LoopEngine(unit).clipped_sum(network, nn.CrossEntropyLoss(), batch, clip)
    assert torch.allclose(found.flat_grad, expected.flat_grad, rtol=1e-3, atol=1e-6)
    assert watched.kept
    assert all(watched.kept)
    assert len(watched.layouts) == len(watched.kept)
    for size, stride in watched.layouts:
        assert size[0] == 4
        assert stride[-1] == 1
        assert 0 not in stride


def test_attention_inside_a_layers_function_sees_the_rows_of_all_examples(monkeypatch):
    layer, kept, original = nn.MultiheadAttention(8, 2, batch_first=True), [], F.scaled_dot_product_attention

    def noted(*args, **kwargs):
        kept.append(would_keep_its_sums(*args[:3]))
        return original(*args, **kwargs)

    layer.requires_grad_(False)
    x = torch.randn(3, 5, 8, requires_grad=True)
    expected = layer(x, x, x, need_weights=False)[0]
    monkeypatch.setattr(F, "scaled_dot_product_attention", noted)
    monkeypatch.setattr(
        "mechanisms.engines.isolation.guards.replaced_function", lambda: None
    )  # which would refuse the patch
    with PoolFirst():
        found = isolated(lambda one: layer(one, one, one, need_weights=False)[0], x).squeeze(1)
    assert kept == [True]
    assert F.scaled_dot_product_attention is noted
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.allclose(*(torch.autograd.grad(out.square().sum(), x)[0] for out in (found, expected)), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "options",
    [{}, {"batch_first": True}, {"bias": False}, {"add_bias_kv": True}, {"kdim": 8, "vdim": 8, "bias": False}],
    ids=str,
)
@pytest.mark.parametrize("crossed", [False, True])
@pytest.mark.sample(20)
def test_attention_is_exact_with_masks_and_weights(assert_exact, options, crossed, dtype):
    class Attentive(nn.Module):
        def __init__(self):
            super().__init__()
            self.lift, self.attention = nn.Linear(5, 8), nn.MultiheadAttention(8, 2, **options)
            self.head, self.first = nn.Linear(8, 3), options.get("batch_first", False)

        def forward(self, x):
            h = self.lift(x if self.first else x.transpose(0, 1))
            causal = torch.ones(6, 6, dtype=torch.bool).triu(1)
            padding = torch.zeros(len(x), 6, dtype=torch.bool)
            padding[:, -1] = True
            other = h.tanh() if crossed else h
            mixed, weights = self.attention(h, other, other, padding, self.first, causal)
            extra = 0 if weights is None else weights.square().sum((1, 2)).unsqueeze(1)
            return self.head(mixed.mean(1 if self.first else 0)) + extra * torch.arange(3)

    if "add_bias_kv" in options:  # rare options, which run example by example
        sites = {site.name: site.how for site in find_sites(Attentive())}
        assert isinstance(sites["attention"], ByExample)
    assert_exact(Attentive().to(dtype), torch.randn(4, 6, 5, dtype=dtype), torch.randint(0, 3, (4,)))


def test_a_transformer_encoder_with_learnt_positions_is_exact(assert_exact):
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.positions = nn.Embedding(20, 8), nn.Embedding(7, 8)
            self.core = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.core(self.tokens(x) + self.positions(torch.arange(x.shape[1]))).mean(1))

    assert_exact(Encoder(), torch.randint(0, 20, (5, 7)), torch.randint(0, 3, (5,)))
