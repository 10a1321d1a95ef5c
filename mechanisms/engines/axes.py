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
Shapes = list["torch.Size | None"]


class AxisBook:
    """The axes of every watched call, found by comparing a pass of two examples with a pass of three."""

    sizes = (2, 3)

    def __init__(self) -> None:
        self.known = False
        #: Numbers that one example adds to the tensors of all watched calls.
        self.entries_per_example = 0
        #: Whether every watched tensor is one vector per example.
        self.vectors_only = True
        #: Shapes of the calls of each pass, by key.
        self._passes: list[dict[str, list[Shapes]]] = []
        self._axes: dict[str, Axes] = {}

    def begin_pass(self) -> None:
        """The calls that are noted from now on are of another pass."""
        self._passes.append(defaultdict(list))

    def note(self, key: str, values: Sequence[Any]) -> None:
        """Keep the shapes of one call of the pass under way."""
        self._passes[-1][key].append([value.shape if isinstance(value, Tensor) else None for value in values])

    def compare(self) -> None:
        """Compare two passes, one of each size; a call that is not in both, or known already, teaches nothing."""
        small, large = self._passes
        for key in small.keys() & large.keys() - self._axes.keys():
            first, second = small[key], large[key]
            if len(first) == len(second) and len(first[0]) == len(second[0]):
                self._axes[key] = [_compare(key, *pair) for pair in zip(first[0], second[0], strict=True)]
                self.entries_per_example += sum(map(_entries, second)) - sum(map(_entries, first))
                self.vectors_only &= all(shape is None or len(shape) <= 2 for shape in first[0])
        self._passes.clear()

    def has(self, site: str) -> bool:
        """Whether a call of the site of that name is known."""
        return any(_site(key) == site for key in self._axes)

    def known_of(self, key: str) -> Axes | None:
        """The axes found for a call, or None for a call that no comparison has seen."""
        return self._axes.get(key)

    def of(self, key: str, values: Sequence[Any], batch_size: int) -> Axes:
        """The axes of a call's tensors.

        Raises:
            UnsupportedModuleError: The shapes do not fit the number of examples.
        """
        found = self._axes.get(key)
        if found is None:
            found = self._axes[key] = self._like_the_others(key)
        if len(found) != len(values):
            raise UnsupportedModuleError(
                f"layer {_site(key)!r} is called with {len(found)} tensors and with {len(values)}"
            )
        for value, axis in zip(values, found, strict=True):
            if axis is not None and (value.dim() <= axis.dim or value.shape[axis.dim] != batch_size * axis.fold):
                raise UnsupportedModuleError(
                    f"layer {_site(key)!r} has a tensor of shape {tuple(value.shape)} for a batch of "
                    f"{batch_size} examples; dimension {axis.dim} should have {axis.fold} entries per example"
                )
        return found

    def _like_the_others(self, key: str) -> Axes:
        """The axes of a call that no trial pass has seen: those of the layer's other calls, if they are all alike."""
        others = [axes for known, axes in self._axes.items() if _use(known) == _use(key)]
        if not others or any(axes != others[0] for axes in others):
            raise UnsupportedModuleError(
                f"layer {_site(key)!r} is called where no trial pass has called it, so that where its examples lie is "
                "not known; use engine='vmap' or engine='loop'"
            )
        return others[0]


def _site(key: str) -> str:
    return key.partition(":")[0]


def _use(key: str) -> tuple[str, str]:
    """Site and place within it, whichever of the site's calls it is."""
    site, _, rest = key.partition(":")
    return site, rest.partition(":")[2]


def _entries(shapes: Shapes) -> int:
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
        f"layer {_site(key)!r} mixes the examples of a batch: it meets shape {tuple(small)} for {low} "
        f"examples and {tuple(large)} for {high}"
    )
