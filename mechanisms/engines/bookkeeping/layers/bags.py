"""Bags of embeddings: a table followed by a sum, a mean or a maximum over each example's tokens."""

from __future__ import annotations

import math

from torch import Tensor, nn

from mechanisms.engines.bookkeeping.layers.rewrites import Tape, rewrite
from monitors.errors import UnsupportedModuleError


@rewrite(nn.EmbeddingBag)
def embedding_bag(
    module: nn.EmbeddingBag,
    tape: Tape,
    tokens: Tensor,
    offsets: Tensor | None = None,
    per_sample_weights: Tensor | None = None,
) -> Tensor:
    """The output of ``nn.EmbeddingBag`` for one row of tokens per example, shape (B, T)."""
    if offsets is not None or tokens.dim() != 2:
        raise UnsupportedModuleError("EmbeddingBag needs tokens of shape (batch, tokens) and no offsets")
    if module.scale_grad_by_freq or module.max_norm is not None:
        raise UnsupportedModuleError(
            "EmbeddingBag with scale_grad_by_freq or max_norm makes examples depend on each other; turn both off"
        )
    rows = tape.embedding(tokens, "weight", module.padding_idx)
    used = tokens.new_ones(tokens.shape, dtype=rows.dtype)
    if module.padding_idx is not None:
        used = (tokens != module.padding_idx).to(rows.dtype)
    if module.mode == "max":
        best = rows.masked_fill(used.unsqueeze(2) == 0, -math.inf).max(dim=1).values
        return best.masked_fill((used.sum(1) == 0).unsqueeze(1), 0.0)
    weights = used if per_sample_weights is None else used * per_sample_weights
    summed = (rows * weights.unsqueeze(2)).sum(1)
    return summed if module.mode == "sum" else summed / used.sum(1, keepdim=True).clamp(min=1.0)
