"""Data sets with a memory: examples that depend on the examples read before them."""

from __future__ import annotations

import copy
import sys
from typing import Any

import numpy as np
import torch

from dpmodel.data.generators import Generators
from dpmodel.data.held_rows import SHORT
from dpmodel.data.reachable import MAX_OBJECTS, reachable
from dpmodel.preflight.readings import digest

_SEED = 20_011

#: Copies of a data set share larger objects and longer containers: these hold data, not state.
_SHARED_BYTES = 2**16

#: Triples of examples that are read.
_TRIED = 8


def depends_on_order(dataset: Any, draw: np.random.Generator) -> str | None:
    """How an example changes with the example read before it, in words; None if it does not.

    Each reading uses a fresh copy of the data set and equal seeds. A data set that cannot be copied is not checked.

    Args:
        dataset: Map-style data set.
        draw: Chooses the examples.
    """
    shared = _shared(dataset)
    if shared is None:
        return None
    try:
        for _ in range(_TRIED):
            row, one, other = draw.permutation(len(dataset))[:3].tolist()
            after_one, after_other = (_after(dataset, shared, row, before) for before in (one, other))
            if None in (after_one, after_other) or after_one == after_other:
                continue
            again = [_after(dataset, shared, row, before) for before in (one, other)]
            if again == [after_one, after_other]:
                return f"example {row} differs after example {one} was read and after example {other} was read"
    except Exception:  # it cannot be copied or read
        return None
    return None


def _after(dataset: Any, shared: dict[int, Any], row: int, before: int) -> bytes | None:
    fresh = copy.deepcopy(dataset, dict(shared))
    generators = Generators(fresh)
    generators.find()
    generators.seed(_SEED)
    fresh[before]
    generators.find()
    generators.seed(_SEED)
    return digest(fresh[row])


def _shared(dataset: Any) -> dict[int, Any] | None:
    """Large objects that copies share, as the memo of ``copy.deepcopy``; None if there are too many objects."""
    objects = reachable(dataset)
    if len(objects) >= MAX_OBJECTS:
        return None
    return {id(value): value for value in objects if _is_large(value)}


def _is_large(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.untyped_storage().nbytes() > _SHARED_BYTES  # a copy of a part copies all of it
    if isinstance(value, (list, tuple, dict, set)) and len(value) > SHORT:
        return True
    return sys.getsizeof(value) > _SHARED_BYTES
