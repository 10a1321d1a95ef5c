"""Where the examples of a batch lie in the tensors that layers are given and give."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from monitors.errors import UnsupportedModuleError


@dataclass(frozen=True)
class Axis:
    """Dimension ``dim`` of a tensor has ``fold`` consecutive entries per example."""

    dim: int
    fold: int = 1


#: One entry per tensor; None for a tensor that does not depend on the number of examples.
Axes = list["Axis | None"]


class AxisBook:
    """The axes of every watched call, found by comparing a pass of two examples with a pass of three."""

    sizes = (2, 3)

    def __init__(self) -> None:
        self.known = False
        #: Numbers that one example adds to the tensors of all watched calls.
        self.entries_per_example = 0
        #: Whether every watched tensor is one vector per example.
        self.vectors_only = True
        self._seen: dict[str, list[list[torch.Size | None]]] = defaultdict(list)
        self._axes: dict[str, Axes] = {}

    def note(self, key: str, values: Sequence[Any]) -> None:
        """Keep the shapes of one call of the pass under way."""
        self._seen[key].append([value.shape if isinstance(value, Tensor) else None for value in values])

    def settle(self) -> None:
        """Compare the two passes; a call that is not in both is taken to have its examples first."""
        for key, shapes in self._seen.items():
            half = len(shapes) // 2
            if half and len(shapes) % 2 == 0 and len(shapes[0]) == len(shapes[half]):
                pairs = zip(shapes[0], shapes[half], strict=True)
                self._axes[key] = [_compare(key, small, large) for small, large in pairs]
                entries = [sum(map(_entries, part)) for part in (shapes[:half], shapes[half:])]
                self.entries_per_example += entries[1] - entries[0]
                self.vectors_only &= all(shape is None or len(shape) <= 2 for shape in shapes[0])
        self.known = True
        self._seen.clear()

    def known_of(self, key: str) -> Axes | None:
        """The axes found for a call, or None for a call that no comparison has seen."""
        return self._axes.get(key)

    def of(self, key: str, values: Sequence[Any], batch_size: int) -> Axes:
        """The axes of a call's tensors.

        Raises:
            UnsupportedModuleError: The shapes do not fit the number of examples.
        """
        found = self._axes.get(key)
        if found is None or len(found) != len(values):
            first = [isinstance(v, Tensor) and v.dim() > 0 and v.shape[0] == batch_size for v in values]
            found = [Axis(0) if batched else None for batched in first]
        for value, axis in zip(values, found, strict=True):
            if axis is not None and (value.dim() <= axis.dim or value.shape[axis.dim] != batch_size * axis.fold):
                raise UnsupportedModuleError(
                    f"layer {key.partition(':')[0]!r} has a tensor of shape {tuple(value.shape)} for a batch of "
                    f"{batch_size} examples; dimension {axis.dim} should have {axis.fold} entries per example"
                )
        return found


def _entries(shapes: Sequence[torch.Size | None]) -> int:
    return sum(math.prod(shape) for shape in shapes if shape is not None)


def _compare(key: str, small: torch.Size | None, large: torch.Size | None) -> Axis | None:
    if small is None or large is None or small == large:
        return None
    low, high = AxisBook.sizes
    different = [dim for dim, (a, b) in enumerate(zip(small, large, strict=False)) if a != b]
    if len(small) == len(large) and len(different) == 1:
        dim = different[0]
        fold, rest = divmod(small[dim], low)
        if not rest and large[dim] == high * fold:
            return Axis(dim, fold)
    raise UnsupportedModuleError(
        f"layer {key.partition(':')[0]!r} mixes the examples of a batch: it meets shape {tuple(small)} for {low} "
        f"examples and {tuple(large)} for {high}"
    )
