"""Finds tensors computed from a batch that are still alive after the pass that computed them."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Escapes(TorchDispatchMode):
    """While active, tracks all tensors computed from a batch, without keeping them alive.

    Args:
        batch: Tensors of the batch. Keeping a part of them counts as an escape too.
        watched: Tensors that are checked elsewhere, such as parameters: writing to them is not an escape.

    Example:
        >>> x, kept = torch.ones(3), []
        >>> with Escapes([x]) as escapes:
        ...     kept += [x * 2, torch.zeros(3)]
        >>> escapes.count()
        1
        >>> kept.clear()
        >>> escapes.count()
        0
    """

    def __init__(self, batch: Iterable[Tensor], watched: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._batch = list(_storages(batch))
        self._watched = set(_storages(watched))
        self._uses = list(map(_uses, self._batch))
        self._computed: WeakSet[Any] = WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func``; if any of its arguments is private, so is everything it returns or writes to."""
        del types
        kwargs = kwargs or {}
        given = list(_storages(tree_leaves((args, kwargs))))
        found = func(*args, **kwargs)
        if any(storage in self._computed or storage in self._batch for storage in given):
            written = given if func._schema.is_mutable else []
            made = [storage for storage in _storages(tree_leaves(found)) if storage not in given]
            known = {*self._batch, *self._watched}
            self._computed.update(storage for storage in (*made, *written) if storage not in known)
        return found

    def count(self) -> int:
        """Number of tracked tensors, and of parts of the batch, that are still alive."""
        if self._alive():
            gc.collect()  # unreachable reference cycles are not an escape
        return self._alive()

    def _alive(self) -> int:
        kept = sum(max(0, _uses(storage) - before) for storage, before in zip(self._batch, self._uses, strict=True))
        return kept + len([storage for storage in self._computed if storage.nbytes()])


def _storages(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, Tensor) and value.layout == torch.strided:
            yield value.untyped_storage()


def _uses(storage: Any) -> int:
    """Number of tensors that share a storage."""
    return int(torch._C._storage_Use_Count(storage._cdata))
