"""The augmentation of a training: its transforms, and the number of views that are averaged for each example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dpmodel.augmentation.transforms import Transform, build_transform
from mechanisms.engines.batch import Batch, first_tensor
from mechanisms.engines.device_copy import device_copy
from mechanisms.engines.views import Views
from monitors import checks


class Augmentation:
    """Makes K random views of each example, whose gradients are averaged before the clip.

    An example is clipped once, as a whole, so epsilon does not depend on K. A step takes K times as long.

    Args:
        transforms: Applied one after the other; a single one will do. Each is a registered name, a mapping with
            ``name`` and arguments, or a ``Transform``.
        multiplicity: Number K of views of each example, at least 1.

    Raises:
        ValueError: There is no transform, one is unknown or of the wrong type, or ``multiplicity`` is out of range.

    References:
        De et al. 2022, "Unlocking High-Accuracy Differentially Private Image Classification through Scale".

    Example:
        >>> augmentation = Augmentation(["random_crop", "horizontal_flip"], multiplicity=8)
        >>> augmentation
        Augmentation([RandomCrop(padding=4), HorizontalFlip()], multiplicity=8)
        >>> augmentation.drawn(Batch(torch.rand(5, 3, 32, 32), torch.zeros(5))).made().x.shape
        torch.Size([5, 8, 3, 32, 32])
    """

    def __init__(self, transforms: Any, multiplicity: int = 1) -> None:
        checks.positive_int(augmentation_multiplicity=multiplicity)
        given = list(transforms) if isinstance(transforms, (list, tuple)) else [transforms]
        self.transforms = [_built(one) for one in given]
        self.multiplicity = int(multiplicity)
        if not self.transforms:
            raise ValueError("augmentation must name at least one transform, or be None")

    @classmethod
    def of(cls, transforms: Any, multiplicity: int) -> Augmentation | None:
        """The augmentation of ``DPModel``'s arguments; None for none.

        Raises:
            ValueError: As for the class, or there are several views but no transform.
        """
        if transforms is not None:
            return cls(transforms, multiplicity)
        checks.positive_int(augmentation_multiplicity=multiplicity)
        if multiplicity > 1:
            raise ValueError(
                f"augmentation_multiplicity={multiplicity} without augmentation would compute the same gradient "
                f"{multiplicity} times; pass augmentation=['random_crop', 'horizontal_flip'], for example"
            )
        return None

    def __repr__(self) -> str:
        return f"Augmentation({self.transforms!r}, multiplicity={self.multiplicity})"

    def drawn(self, batch: Batch) -> Batch:
        """The batch with views drawn for each example, from torch's default generator of the CPU."""
        return replace(batch, views=self.views(batch.size, first_tensor(batch.x).device))

    def views(self, size: int, device: torch.device) -> Views:
        """Views for ``size`` examples on ``device``, drawn from torch's default generator of the CPU."""
        count = sum(one.numbers for one in self.transforms)
        numbers = torch.rand(size, self.multiplicity, count, device="cpu")
        # The transforms themselves, because the state of this object, which is the library's, is not followed.
        return Views(device_copy(numbers, device), partial(_transformed, (*self.transforms,)))


def _transformed(transforms: Sequence[Transform], copies: Any, numbers: Tensor) -> Any:
    """Transform the copies of one example, shape (K, ...), as their numbers (K, D) determine."""
    parts = numbers.split([one.numbers for one in transforms], dim=1)
    for one, part in zip(transforms, parts, strict=True):
        copies = one(copies, part)
    return copies


def _built(given: Any) -> Transform:
    if isinstance(given, str):
        return build_transform(given)
    if isinstance(given, Mapping) and isinstance(given.get("name"), str):
        return build_transform(**given)
    if isinstance(given, type) or not isinstance(given, Transform) or not callable(given):
        raise ValueError(
            "augmentation must consist of registered names, mappings with a name and arguments, or objects with numbers"
            f" and __call__(images, numbers), got {given!r}"
        )
    checks.non_negative_int(numbers=given.numbers)
    return given
