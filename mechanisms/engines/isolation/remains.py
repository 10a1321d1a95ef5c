"""Tensors of single examples that outlive the vectorised pass in which they were made."""

from __future__ import annotations

import gc
from typing import Any
from weakref import ref

import torch
from torch import Tensor

_is_batched: Any = torch._C._functorch.is_batchedtensor

#: Those that are alive, by identity.
_known: dict[int, ref[Tensor]] = {}


class Remains:
    """Around a pass; what it leaves alive is known afterwards as long as it lives, and nothing is kept alive.

    PyTorch takes such a tensor for one of the pass that is under way, where its rows would be those of other examples.
    Cyclic garbage is not collected within, so that what was made in the pass stays in order of its making.

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
    """Whether a value is a tensor that an earlier pass has left."""
    return bool(_known) and id(value) in _known


def remaining() -> bool:
    """Whether there is any."""
    return bool(_known)


def _made_since(first: object) -> list[Any]:
    """Objects made since ``first``; all there are, if somebody has collected garbage meanwhile."""
    young = gc.get_objects(generation=0)
    for place in range(len(young) - 1, -1, -1):
        if young[place] is first:
            return young[place:]
    return gc.get_objects()


def _remember(value: Tensor) -> None:
    key = id(value)
    _known[key] = ref(value, lambda _: _known.pop(key, None))
