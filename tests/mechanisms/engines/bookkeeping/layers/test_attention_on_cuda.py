"""Fused attention under book-keeping on a GPU: the backward kernels require layouts that the CPU never requires."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer

from mechanisms.engines import Batch, BookKeepingEngine, LoopEngine, choose_engine
from mechanisms.units import ClippedUnit

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DEVICE, VOCABULARY, CLASSES = "cuda", 64, 5
#: Largest error relative to the largest entry: patches are convolutions in TF32.
ERRORS = {"fp32": 1e-2, "bf16": 0.2}


class Decoder(nn.Module):
    """Encoder layers with a causal mask, a padding mask or both; GPT-2's width, few layers and words."""

    def __init__(self, causal=True, padded=False, width=768, heads=12, layers=1, norm_first=True):
        super().__init__()
        self.causal, self.padded = causal, padded
        self.tokens = nn.Embedding(VOCABULARY, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=norm_first
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, tokens):
        hidden, length = self.tokens(tokens), tokens.shape[1]
        like = {"device": hidden.device, "dtype": hidden.dtype}  # torch sometimes ignores masks of other types
        mask = nn.Transformer.generate_square_subsequent_mask(length, **like) if self.causal else None
        padding = torch.zeros(tokens.shape, **like).masked_fill(tokens == 0, float("-inf")) if self.padded else None
        hidden = self.layers(hidden, mask=mask, src_key_padding_mask=padding, is_causal=self.causal)
        return self.head(hidden.mean(1))


class OwnAttention(nn.Module):
    """Attention as users write it: one projection for all three, then torch's function."""

    def __init__(self, causal, masked, width=768, heads=12):
        super().__init__()
        self.heads, self.causal, self.masked = heads, causal, masked
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.qkv, self.out, self.head = nn.Linear(width, 3 * width), nn.Linear(width, width), nn.Linear(width, CLASSES)

    def forward(self, tokens):
        parts = self.qkv(self.tokens(tokens)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        mask = (tokens != 0)[:, None, None, :] if self.masked else None
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=self.causal)
        return self.head(self.out(mixed.transpose(1, 2).flatten(2)).mean(1))


def vision_transformer(side):
    return VisionTransformer(side, 16, 1, 12, 768, 1536, num_classes=CLASSES)


def words(count, length):
    """Tokens; every other row is padded at its end."""
    found = torch.randint(1, VOCABULARY, (count, length))
    found[::2, -7:] = 0
    return found


CASES = {
    "ViT-B/16, 197 tokens": (lambda: vision_transformer(224), lambda n: torch.randn(n, 3, 224, 224)),
    "GPT-2, 256 tokens, causal": (Decoder, lambda n: words(n, 256)),
    "GPT-2, 255 tokens, causal and padded": (lambda: Decoder(padded=True), lambda n: words(n, 255)),
    "encoder, 67 tokens, padded, post-norm": (
        lambda: Decoder(causal=False, padded=True, norm_first=False),
        lambda n: words(n, 67),
    ),
    "narrow heads, 100 tokens": (lambda: Decoder(width=96, heads=12), lambda n: words(n, 100)),
    "own attention, causal": (lambda: OwnAttention(True, False), lambda n: words(n, 129)),
    "own attention, padded": (lambda: OwnAttention(False, True), lambda n: words(n, 129)),
}


def drawn(case, count):
    make, inputs = CASES[case]
    network = make()
    for value in network.parameters():  # torchvision's head starts at zero, which blocks the gradient
        if not value.any():
            nn.init.normal_(value, std=0.05)
    return network.to(DEVICE), inputs(count).to(DEVICE), (torch.arange(count) % CLASSES).to(DEVICE)


@pytest.mark.parametrize("case", CASES)
def test_book_keeping_matches_the_loop_and_auto_chooses_it(case, clip):
    loss_fn = nn.CrossEntropyLoss()
    for count, precision in ((1, "fp32"), (5, "fp32"), (5, "bf16")):
        network, x, y = drawn(case, count)
        unit, wide = ClippedUnit(1, count), x.double() if x.is_floating_point() else x
        expected = LoopEngine(unit).clipped_sum(copy.deepcopy(network).double(), loss_fn, Batch(wide, y), clip)
        engine = BookKeepingEngine(unit, precision=precision)
        found = engine.clipped_sum(network, loss_fn, Batch(x, y), clip)
        off = float((found.flat_grad - expected.flat_grad).abs().max() / expected.flat_grad.abs().max())
        assert off <= ERRORS[precision], (count, precision)
        assert torch.allclose(found.norms.double(), expected.norms, rtol=ERRORS[precision]), (count, precision)
    choice = choose_engine("auto", network, loss_fn, unit, Batch(x[:2], y[:2]), options={"precision": precision})
    assert choice.engine.name == "bookkeeping", choice.reason


def test_a_frozen_attention_layer_between_trained_ones_propagates_gradients(clip):
    network, x, y = drawn("encoder, 67 tokens, padded, post-norm", 4)
    for layer in network.modules():
        if isinstance(layer, nn.MultiheadAttention):
            layer.requires_grad_(False)
    choice = choose_engine("auto", network, nn.CrossEntropyLoss(), ClippedUnit(1, 4), Batch(x, y))
    assert choice.engine.name == "bookkeeping", choice.reason
    assert torch.isfinite(choice.engine.clipped_sum(network, nn.CrossEntropyLoss(), Batch(x, y), clip).flat_grad).all()
