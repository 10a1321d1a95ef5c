"""Random transforms of images by name. Each is a function of an image and of a few random numbers, and of nothing else.

The numbers are drawn beforehand, so a view does not depend on how a batch is cut into chunks or shared among processes.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from monitors import checks
from monitors.arguments import check_arguments
from monitors.registry import Registry

AUGMENTATIONS: Registry[Any] = Registry("augmentation")


@runtime_checkable
class Transform(Protocol):
    """A random transform of images.

    Attributes:
        numbers: How many random numbers one view takes.
    """

    numbers: int

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        """Transform K copies of one example.

        Args:
            images: The copies, shape (K, *shape of an example).
            numbers: Independent uniform numbers in [0, 1), shape (K, ``numbers``).

        Returns:
            The views, in shape, type and device like ``images``. The code runs under ``torch.func.vmap``: control flow
            that depends on values is refused.
        """


@AUGMENTATIONS.register("random_crop")
class RandomCrop:
    """A window of the size of the image, at a random place of the image padded by reflection.

    Args:
        padding: Largest shift in pixels, at least 1 and below height and width.

    References:
        De et al. 2022, "Unlocking High-Accuracy Differentially Private Image Classification through Scale" (4 pixels,
        reflection).

    Example:
        >>> row = torch.arange(4.0).expand(1, 1, 4, 4)
        >>> RandomCrop(padding=2)(row, torch.tensor([[0.5, 0.0]]))[0, 0, 0].tolist()  # two pixels to the right
        [2.0, 1.0, 0.0, 1.0]
    """

    numbers = 2

    def __init__(self, padding: int = 4) -> None:
        checks.positive_int(padding=padding)
        self.padding = padding

    def __repr__(self) -> str:
        return f"RandomCrop(padding={self.padding})"

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        """See ``Transform``."""
        _require_images(self, images)
        for axis in (-2, -1):
            size = images.shape[axis]
            if self.padding >= size:
                raise ValueError(
                    f"padding={self.padding} must be below height and width, got {tuple(images.shape[-2:])}"
                )
            shift = (numbers[:, axis : axis + 1 or None] * (2 * self.padding + 1)).floor() - self.padding
            place = torch.arange(size, device=images.device) + shift.long()
            images = _entries(images, _reflected(place, size), axis)
        return images


@AUGMENTATIONS.register("horizontal_flip")
class HorizontalFlip:
    """The image or, with probability one half, its mirror image (left and right exchanged).

    Example:
        >>> row = torch.arange(3.0).expand(2, 1, 1, 3)
        >>> HorizontalFlip()(row, torch.tensor([[0.2], [0.7]])).flatten(1).tolist()
        [[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]]
    """

    numbers = 1

    def __repr__(self) -> str:
        return "HorizontalFlip()"

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        """See ``Transform``."""
        _require_images(self, images)
        return torch.where((numbers < 0.5).view(-1, *[1] * (images.dim() - 1)), images.flip(-1), images)


def build_transform(name: str, **args: Any) -> Transform:
    """Build a transform by its registered name.

    Raises:
        ValueError: Unknown name or argument; the message suggests the nearest.

    Example:
        >>> build_transform("random_crop", padding=2)
        RandomCrop(padding=2)
    """
    builder = AUGMENTATIONS.get(name)
    check_arguments(builder, args, f"augmentation {name!r}")
    built: Transform = builder(**args)
    return built


def _require_images(transform: Transform, images: Any) -> None:
    if not isinstance(images, Tensor) or images.dim() < 4:
        found = f"shape {tuple(images.shape[1:])}" if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"{transform!r} needs images, examples of shape (channels, height, width), got {found}")


def _entries(images: Tensor, places: Tensor, axis: int) -> Tensor:
    """The entries of each image at its ``places``, shape (K, size), along an axis counted from the end."""
    shape = [len(images), *[1] * (images.dim() - 1)]
    shape[axis] = places.shape[1]
    return images.gather(axis, places.view(shape).expand(images.shape))


def _reflected(places: Tensor, size: int) -> Tensor:
    """Places outside the image, reflected at its first and last pixel."""
    return size - 1 - (size - 1 - places.abs()).abs()
