"""The benchmark networks in a form that Opacus supports: same parameters, same outputs, no unsupported operations.

The hooks of Opacus do not work with in-place operations (ReLU and addition in torchvision's ResNet), it refuses
``nn.MultiheadAttention``, and it counts examples by the first dimension of the input of an embedding. These are
replaced here, the weights copied and the outputs compared, so that Opacus is timed on the same function as the others.

``opacus.layers.DPMultiheadAttention`` (1.6.0) is a different function: with ``batch_first`` it passes heads and
positions to ``out_proj`` in a different order. ``LinearAttention`` has the same four linear layers around torch's
attention function.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.models.vision_transformer import VisionTransformer
from workloads import CausalLM, TextEncoder, Workload

#: Largest difference of two float32 forward passes, relative to the largest output.
TOLERANCE = 1e-4


class OutOfPlaceBlock(BasicBlock):
    """A residual block whose addition is not in-place."""

    def forward(self, x: Tensor) -> Tensor:
        """Like the base class, without writing to the output of a layer."""
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        added: Tensor = self.relu(out + (x if self.downsample is None else self.downsample(x)))
        return added


class LinearAttention(nn.Module):
    """``nn.MultiheadAttention`` with ``batch_first``, no padding and no dropout, made of four linear layers."""

    def __init__(self, given: nn.MultiheadAttention) -> None:
        super().__init__()
        width = given.embed_dim
        self.num_heads, self.batch_first = given.num_heads, True
        self.in_proj_bias = self.in_proj_weight = None  # read by nn.TransformerEncoderLayer
        self._qkv_same_embed_dim = False
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        parts = zip(given.in_proj_weight.chunk(3), given.in_proj_bias.chunk(3), strict=True)
        with torch.no_grad():
            for layer, (weight, bias) in zip((self.query, self.key, self.value), parts, strict=True):
                layer.weight.copy_(weight)
                layer.bias.copy_(bias)
        self.out_proj = copy.deepcopy(given.out_proj)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> tuple[Tensor, None]:
        """The attention output (B, L, width), and None for the attention weights."""
        causal = bool(options.get("is_causal"))
        mask = None if causal else options.get("attn_mask")
        pairs = ((self.query, query), (self.key, key), (self.value, value))
        q, k, v = (layer(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2) for layer, x in pairs)
        mixed = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)
        return self.out_proj(mixed.transpose(1, 2).flatten(2)), None


class PeerTextEncoder(TextEncoder):
    """The encoder with one row of positions per example."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Like the base class."""
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape).contiguous()
        scores: Tensor = self.head(self.encoder(self.tokens(tokens) + self.positions(positions)).mean(1))
        return scores


def for_opacus(network: nn.Module) -> nn.Module:
    """A copy of ``network`` that Opacus supports, with the same weights; most networks need no change."""
    twin = copy.deepcopy(network)
    for kind, change in _CHANGES.items():
        if isinstance(twin, kind):
            change(twin)
    return twin


def changes_for_opacus(workload: Workload) -> str:
    """Description of what was replaced; empty if nothing was."""
    network = workload.network()
    return next((words for kind, words in _WORDS.items() if isinstance(network, kind)), "")


def require_equal(network: nn.Module, twin: nn.Module, x: Tensor) -> float:
    """The largest relative difference of the outputs on ``x``.

    Raises:
        AssertionError: The two are not the same function, or differ in their number of parameters.
    """
    counts = [sum(value.numel() for value in one.parameters()) for one in (network, twin)]
    with torch.no_grad():
        expected, found = network(x), twin(x)
    difference = float((found - expected).abs().max() / expected.abs().max())
    if counts[0] != counts[1] or difference > TOLERANCE:
        raise AssertionError(f"the peer has {counts[1]} parameters, not {counts[0]}, and is off by {difference:.1e}")
    return difference


def _out_of_place(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
        elif type(module) is BasicBlock:
            module.__class__ = OutOfPlaceBlock


def _with_linear_attention(network: nn.Module) -> None:
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is nn.MultiheadAttention:
                setattr(module, name, LinearAttention(child))
    if isinstance(network, TextEncoder):
        network.__class__ = PeerTextEncoder


_CHANGES: dict[type[nn.Module], Callable[[nn.Module], None]] = {
    ResNet: _out_of_place,
    TextEncoder: _with_linear_attention,
    CausalLM: _with_linear_attention,
    VisionTransformer: _with_linear_attention,
}
_WORDS: dict[type[nn.Module], str] = {
    ResNet: "out-of-place ReLU and addition in place of torchvision's in-place ones",
    TextEncoder: "attention of four linear layers in place of nn.MultiheadAttention, one row of positions per example",
    CausalLM: "attention of four linear layers in place of nn.MultiheadAttention",
    VisionTransformer: "attention of four linear layers in place of nn.MultiheadAttention",
}
