"""Self-attention over few positions on a CPU: matrix products of whole heads, faster there than tiled attention."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

#: Up to this many positions, the scores of a head stay in the innermost caches; at about twice as many, tiles win.
SHORT = 128


def is_short(packed: Tensor, mask: Tensor | None) -> bool:
    """Whether ``short_self_attention`` is faster and equally exact.

    Args:
        packed: Shape (B, T, 3E).
        mask: Added to the scores, or None.
    """
    plain = packed.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled("cpu")
    constant = mask is None or not mask.requires_grad
    return packed.device.type == "cpu" and plain and constant and packed.shape[-2] <= SHORT


def short_self_attention(packed: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """``softmax(q k' / sqrt(E / heads) + mask) v`` of each head, shape (B, T, E).

    Memory: one score per head and pair of positions, until the backward pass. A fully masked query gets zeros, as in
    PyTorch.

    Args:
        packed: Queries, keys and values, shape (B, T, 3E); each of the three is ordered by head.
        heads: Number of heads; divides E.
        mask: Constant, broadcastable to (B, heads, T, T), or None.

    References:
        Vaswani et al. 2017, "Attention Is All You Need", section 3.2.

    Example:
        >>> short_self_attention(torch.ones(2, 5, 12), heads=2).shape
        torch.Size([2, 5, 4])
    """
    mixed: Tensor = _ShortSelfAttention.apply(packed, heads, mask)
    return mixed


class _ShortSelfAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, packed: Tensor, heads: int, mask: Tensor | None) -> Tensor:
        size, positions = packed.shape[:2]
        q, k, v = parts = _of_heads(packed.unflatten(2, (3, heads, -1)))
        weights = _scaled_product(q.new_empty(len(q), positions, positions), q, k.transpose(1, 2), _scale(q))
        if mask is not None:
            weights.view(size, heads, positions, positions).add_(mask)
        torch.softmax(weights, -1, out=weights)
        if mask is not None:
            shared = mask.stride(0) == 0  # one mask, repeated for every row
            blind = (mask[:1] if shared else mask).isneginf().all(-1, keepdim=True)
            weights.view(size, heads, positions, positions).masked_fill_(blind, 0.0)
        ctx.save_for_backward(parts, weights)
        ctx.heads = heads
        return _of_positions(torch.bmm(weights, v).unsqueeze(0), size, heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        parts, weights = ctx.saved_tensors
        (q, k, v), found = parts, torch.empty_like(parts)
        (g,) = _of_heads(grad.unflatten(2, (1, ctx.heads, -1)))
        torch.bmm(weights.transpose(1, 2), g, out=found[2])
        scores = torch._softmax_backward_data(torch.bmm(g, v.transpose(1, 2)), weights, -1, weights.dtype)
        _scaled_product(found[0], scores, k, _scale(q))
        _scaled_product(found[1], scores.transpose(1, 2), q, _scale(q))
        return _of_positions(found, len(grad), ctx.heads), None, None


def _scale(q: Tensor) -> float:
    return 1.0 / math.sqrt(q.shape[2])


def _scaled_product(out: Tensor, left: Tensor, right: Tensor, scale: float) -> Tensor:
    product: Tensor = torch.baddbmm(out, left, right, beta=0.0, alpha=scale, out=out)
    return product


def _of_heads(value: Tensor) -> Tensor:
    """(B, T, parts, heads, width) as contiguous (parts, B * heads, T, width)."""
    return value.permute(2, 0, 3, 1, 4).flatten(1, 2).contiguous()


def _of_positions(value: Tensor, size: int, heads: int) -> Tensor:
    """The inverse of ``_of_heads``: (parts, B * heads, T, width) as contiguous (B, T, parts * heads * width)."""
    return value.view(len(value), size, heads, *value.shape[2:]).permute(1, 3, 0, 2, 4).flatten(2).contiguous()
