"""Layer rules of the book-keeping engine, one file per family."""

from __future__ import annotations

from mechanisms.engines.bookkeeping.layers import (  # noqa: F401  (importing registers their rules)
    attention,
    bags,
    convolution,
    embedding,
    linear,
    normalisation,
    recurrent,
)
from mechanisms.engines.bookkeeping.layers.rewrites import REWRITES, rewrite
from mechanisms.engines.bookkeeping.layers.rules import (
    LAYER_RULES,
    Call,
    Formula,
    LayerRule,
    Term,
    layer_rule,
    rule_for,
)

__all__ = ["LAYER_RULES", "REWRITES", "Call", "Formula", "LayerRule", "Term", "layer_rule", "rewrite", "rule_for"]
