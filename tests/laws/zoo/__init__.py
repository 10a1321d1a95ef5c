"""Trainings in which examples reach each other, by kind, each with a twin in which they do not."""

from __future__ import annotations

from .sound import SOUND
from . import callbacks, collation, conditional, datasets, delayed, draws, hooks, layers, losses, sorted_data, state

__all__ = ["MEMBERS", "SOUND"]

MEMBERS = [
    member
    for kind in (conditional, delayed, draws, state, sorted_data, losses, layers, hooks, collation, datasets, callbacks)
    for member in kind.MEMBERS
]
