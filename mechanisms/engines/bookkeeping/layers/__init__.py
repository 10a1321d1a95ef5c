"""Rules of the layers that the book-keeping engine takes apart by itself, one file per family."""

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
from mechanisms.engines.bookkeeping.layers.rules import LAYER_RULES, Call, LayerRule, Plan, Term, layer_rule, rule_for

__all__ = ["LAYER_RULES", "REWRITES", "Call", "LayerRule", "Plan", "Term", "layer_rule", "rewrite", "rule_for"]
