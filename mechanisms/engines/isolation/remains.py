"""Tracks tensors of single examples that outlive the vectorised pass that created them."""

from __future__ import annotations

import gc
from typing import Any
from weakref import ref

import torch
from torch import Tensor

_is_batched: Any = torch._C._functorch.is_batchedtensor

#: Tensors that are alive, by id.
_known: dict[int, ref[Tensor]] = {}


class Remains:
    """Surrounds a pass; tensors that survive it are tracked while they live, without keeping them alive.

    In a later pass, PyTorch would treat such a tensor as one of that pass, although its rows belong to other examples.
    Garbage collection is off inside, so that the objects created in the pass stay in order of creation.

    Example:
        >>> kept = []
        >>> with Remains():
        ...     _ = torch.func.vmap(lambda x: kept.append(x * 2) or x)(torch.ones(2))
        >>> is_remaining(kept[0]), is_remaining(torch.ones(2))
        (True, False)
        >>> kept.clear()
    """

    def __enter__(self) -> None:
        self._collects = gc.isenabled()
        gc.disable()
        self._first: list[Any] = []

    def __exit__(self, *exception: object) -> None:
        for value in _made_since(self._first):
            if isinstance(value, Tensor) and _is_batched(value):
                _remember(value)
        if self._collects:
            gc.enable()


def is_remaining(value: object) -> bool:
    """Whether a value is a tensor that survived an earlier pass."""
    return bool(_known) and id(value) in _known


def remaining() -> bool:
    """Whether there are any such tensors."""
    return bool(_known)


def _made_since(first: object) -> list[Any]:
    """Objects created since ``first``; all objects if garbage was collected in the meantime."""
    young = gc.get_objects(generation=0)
    for place in range(len(young) - 1, -1, -1):
        if young[place] is first:
            return young[place:]
    return gc.get_objects()


def _remember(value: Tensor) -> None:
    key = id(value)
    _known[key] = ref(value, lambda _: _known.pop(key, None))
