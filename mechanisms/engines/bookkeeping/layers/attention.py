"""Multi-head attention as two linear layers around the attention itself."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mechanisms.engines.bookkeeping.layers.rewrites import Tape, rewrite
from mechanisms.engines.bookkeeping.layers.short_attention import is_short, short_self_attention
from mechanisms.engines.isolation.rows import lie_alike, needs_gradient, on_rows
from monitors.errors import UnsupportedModuleError


@rewrite(nn.MultiheadAttention, takes=lambda module: module.bias_k is None and not module.add_zero_attn)
def multihead_attention(
    module: nn.MultiheadAttention,
    tape: Tape,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """The outputs of ``nn.MultiheadAttention`` for batched inputs."""
    del is_causal  # only a hint about attn_mask, which is passed too
    _require_torchs_shapes(module, query, key, value, key_padding_mask, attn_mask)
    dropout = module.dropout if module.training else 0.0
    packed = None
    if query is key and key is value and module._qkv_same_embed_dim:
        packed = _batch_first(module, tape.linear(query, "in_proj_weight", _in_bias(module)))
        parts = packed.split(module.embed_dim, dim=-1)
    else:
        parts = tuple(_batch_first(module, part) for part in _projections(module, tape, query, key, value))
    q, k, v = (part.unflatten(2, (module.num_heads, -1)).transpose(1, 2) for part in parts)
    mask = _merged_mask(attn_mask, key_padding_mask, q, k.shape[2])
    weights = None
    if need_weights:
        weights = q @ k.transpose(2, 3) / math.sqrt(q.shape[3])
        weights = F.dropout((weights if mask is None else weights + mask).softmax(-1), dropout)
        mixed = (weights @ v).transpose(1, 2).flatten(2)
        weights = weights.mean(1) if average_attn_weights else weights
    elif packed is not None and not dropout and is_short(packed, mask) and not needs_gradient(mask):
        mask = None if mask is None else _by_row(mask, len(packed), 4)
        mixed = on_rows(partial(_short, module.num_heads), packed.unsqueeze(1), mask)
    else:
        mixed = attention_by_rows(q, k, v, attn_mask=mask, dropout_p=dropout).transpose(1, 2).flatten(2)
    out_bias = None if module.out_proj.bias is None else "out_proj.bias"
    return _batch_first(module, tape.linear(mixed, "out_proj.weight", out_bias)), weights


def _short(heads: int, packed: Tensor, mask: Tensor | None) -> Tensor:
    return short_self_attention(packed.squeeze(1), heads, mask)


def attention_by_rows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Tensor:
    """``F.scaled_dot_product_attention``, which treats rows independently, by the library's kernel for whole batches.

    Args:
        query: Shape (rows, ..., queries, width).
        key: Shape (rows, ..., keys, width).
        value: Shape (rows, ..., keys, width).
        attn_mask: Broadcastable to (rows, ..., queries, keys), or None.
        dropout_p: As of the function.
        is_causal: As of the function.
        options: Further keyword arguments.
    """
    options |= {"dropout_p": dropout_p, "is_causal": is_causal}

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, mask, **options)

    mask = attn_mask
    if mask is not None and min(query.dim(), key.dim()) > 1:
        _require_no_more_rows(mask, query, key, grouped=bool(options.get("enable_gqa")))
        mask = _by_row(mask, len(query), query.dim()) if mask.dim() <= query.dim() else mask
    if query.dim() > 2 and lie_alike(query, key, value, mask):
        return on_rows(attend, query, key, value, mask)
    with sdpa_kernel(SDPBackend.MATH):  # under vmap: fused kernels have no batching rule
        return attend(query, key, value, attn_mask)


def _require_no_more_rows(mask: Tensor, query: Tensor, key: Tensor, *, grouped: bool) -> None:
    """Refuse, as PyTorch does for a single example, a mask that would broadcast the scores to a larger shape."""
    leading = query.shape[:-2] if grouped else torch.broadcast_shapes(query.shape[:-2], key.shape[:-2])
    scores = torch.Size((*leading, query.shape[-2], key.shape[-2]))
    if torch.broadcast_shapes(mask.shape, scores) != scores:
        raise RuntimeError(f"scores of shape {tuple(scores)} don't match the broadcast shape of {tuple(mask.shape)}")


def _by_row(mask: Tensor, rows: int, dims: int) -> Tensor:
    """The mask with ``dims`` dimensions, expanded over the rows if they share one."""
    mask = mask[(None,) * (dims - mask.dim())]
    return mask.expand(rows, *mask.shape[1:]) if len(mask) == 1 else mask


def _require_torchs_shapes(
    module: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    padding: Tensor | None,
    mask: Tensor | None,
) -> None:
    """Refuse inputs without a batch, and shapes that broadcast but that ``nn.MultiheadAttention`` refuses."""
    if query.dim() != 3:
        raise UnsupportedModuleError(f"MultiheadAttention needs a batched query of 3 dimensions, got {query.dim()}")
    positions, rows = (1, 0) if module.batch_first else (0, 1)
    size, queries, keys = query.shape[rows], query.shape[positions], key.shape[positions]
    of_keys = [(size, keys) if module.batch_first else (keys, size)]
    shapes: dict[str, tuple[tuple[int, ...] | None, list[tuple[int, ...]]]] = {
        "key": (key.shape[:2] if key.dim() == 3 else (), [*of_keys]),
        "value": (value.shape[:2] if value.dim() == 3 else (), [*of_keys]),
        "key_padding_mask": (None if padding is None else padding.shape, [(size, keys)]),
        "attn_mask": (
            None if mask is None else mask.shape,
            [(queries, keys), (size * module.num_heads, queries, keys)],
        ),
    }
    for name, (given, expected) in shapes.items():
        if given is not None and tuple(given) not in expected:
            raise UnsupportedModuleError(
                f"MultiheadAttention got a {name} of shape {tuple(given)} for a query of shape "
                f"{tuple(query.shape)}; expected {' or '.join(map(str, expected))}"
            )


def _batch_first(module: nn.MultiheadAttention, value: Tensor) -> Tensor:
    """From the module's order of dimensions to batch first, or back."""
    return value if module.batch_first else value.transpose(0, 1)


def _in_bias(module: nn.MultiheadAttention) -> str | None:
    return None if module.in_proj_bias is None else "in_proj_bias"


def _projections(
    module: nn.MultiheadAttention, tape: Tape, query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of inputs that are not all the same tensor, or that differ in width."""
    bias, width = _in_bias(module), module.embed_dim
    if not module._qkv_same_embed_dim:
        parts = [tape.linear(x, f"{name}_proj_weight") for name, x in (("q", query), ("k", key), ("v", value))]
        if bias is None:
            return parts[0], parts[1], parts[2]
        raise UnsupportedModuleError(
            "MultiheadAttention with kdim or vdim and a bias shares one bias among three layers; set bias=False"
        )
    q = tape.linear(query, "in_proj_weight", bias)[..., :width]
    both = tape.linear(key, "in_proj_weight", bias)
    last = both if key is value else tape.linear(value, "in_proj_weight", bias)
    return q, both[..., width : 2 * width], last[..., 2 * width :]


def _merged_mask(mask: Tensor | None, padding: Tensor | None, q: Tensor, keys: int) -> Tensor | None:
    """Both masks combined, to be added to the scores; broadcastable to (B, heads, queries, keys)."""
    found = None
    if mask is not None:
        found = _additive(mask, q)
        found = found.unflatten(0, (q.shape[0], q.shape[1])) if found.dim() == 3 else found
    if padding is not None:
        extra = _additive(padding, q).view(-1, 1, 1, keys)
        found = extra if found is None else found + extra
    return found


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.where(mask, -math.inf, torch.zeros((), dtype=like.dtype, device=mask.device))
