"""Layer rules of the book-keeping engine, one file per family."""

from __future__ import annotations

import warnings
from typing import Any

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


def __getattr__(name: str) -> Any:
    """``Plan``, the former name of ``Formula``."""
    if name == "Plan":
        warnings.warn("Plan is now called Formula", DeprecationWarning, stacklevel=2)
        return Formula
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
