"""Engines: several ways to compute the same clipped sum of per-example gradients."""

from __future__ import annotations

from mechanisms.engines.base import ENGINES, ClippedSum, Engine
from mechanisms.engines.batch import Batch
from mechanisms.engines.bookkeeping.engine import BookKeepingEngine
from mechanisms.engines.bookkeeping.layers import LAYER_RULES, Call, LayerRule, layer_rule
from mechanisms.engines.choose import Choice, choose_engine
from mechanisms.engines.loop import LoopEngine
from mechanisms.engines.losses import ExampleLosses
from mechanisms.engines.parameters import FlatLayout
from mechanisms.engines.vmap import VmapEngine

__all__ = [
    "ENGINES",
    "LAYER_RULES",
    "Batch",
    "BookKeepingEngine",
    "Call",
    "Choice",
    "ClippedSum",
    "Engine",
    "ExampleLosses",
    "FlatLayout",
    "LayerRule",
    "LoopEngine",
    "VmapEngine",
    "choose_engine",
    "layer_rule",
]
