"""Whether an example depends on the examples that were read before it."""

from __future__ import annotations

import copy
import sys
from typing import Any

import numpy as np
import torch

from dpmodel.data.generators import Generators
from dpmodel.data.reachable import MAX_OBJECTS, reachable
from dpmodel.preflight.readings import SHORT, digest

_SEED = 20_011

#: Larger objects, and longer containers, are shared with the copies of a data set: they hold data, not its state.
_SHARED_BYTES = 2**16

#: Triples of examples that are read.
_TRIED = 8


def depends_on_order(dataset: Any, draw: np.random.Generator) -> str | None:
    """How an example changes with what was read before it, in words; None where that does not show.

    Each reading is on a fresh copy of the data set, under equal seeds. A data set that cannot be copied is passed over.

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
                return f"example {row} is another after example {one} was read than after example {other}"
    except Exception:  # what cannot be copied or read
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
    """Large objects that copies share, by identity, as ``copy.deepcopy`` takes them; None if there are too many."""
    objects = reachable(dataset)
    if len(objects) >= MAX_OBJECTS:
        return None
    return {id(value): value for value in objects if _is_large(value)}


def _is_large(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.untyped_storage().nbytes() > _SHARED_BYTES  # all of it is copied with a part
    if isinstance(value, (list, tuple, dict, set)) and len(value) > SHORT:
        return True
    return sys.getsizeof(value) > _SHARED_BYTES
