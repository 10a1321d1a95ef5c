"""One image file as an array of bytes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, BinaryIO

import numpy as np

from monitors.errors import DataError

ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
#: The formats of these endings, as Pillow names them. Others, such as EPS, start further programs.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "PPM", "TIFF")

#: Most pixels of one image: 64 million, as of a large camera.
MOST_PIXELS = 2**26

#: Modes by number of channels, as Pillow names them.
MODES = {1: "L", 3: "RGB"}

#: Modes with more than 8 bits per channel begin with these letters; Pillow clips their values instead of scaling them.
_DEEP = ("I", "F")


class UnfitImageError(ValueError):
    """An image file that is not damaged, but cannot be used.

    Args:
        message: What is wrong with it.
        remedy: What to do.
    """

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


def decoded(stream: BinaryIO, channels: int, size: int | None) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The image in ``stream``, of shape (channels, height, width).

    Args:
        stream: The content of the file.
        channels: 3 for colour, 1 for grey; other images are converted.
        size: Height and width to which it is resized; None keeps its size.

    Raises:
        UnfitImageError: Too many pixels, or more than 8 bits per channel.
        Exception: Pillow raises a dozen types of exception for damaged files.
    """
    from PIL import Image

    try:
        image = Image.open(stream, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise UnfitImageError(str(error), _fewer_pixels()) from error
    with image:
        _require_fit(image)
        converted = image.convert(MODES[channels])
        if size is not None and converted.size != (size, size):
            converted = converted.resize((size, size), Image.Resampling.BILINEAR)
        pixels = np.asarray(converted, dtype=np.uint8)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def read_image(
    open_image: Callable[[], AbstractContextManager[BinaryIO]], where: str, channels: int, size: int | None
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The image that ``open_image`` opens; see ``decoded``.

    Raises:
        DataError: It is damaged or cannot be used; names it as ``where``.
    """
    try:
        with open_image() as stream:
            return decoded(stream, channels, size)
    except UnfitImageError as error:
        raise DataError(f"image {where} cannot be used: {error}. {error.remedy}") from error
    except (Exception, MemoryError) as error:  # Pillow raises a dozen types of exception for damaged files
        raise DataError(f"image {where} cannot be read: {error}. Repair or remove it.") from error


def _require_fit(image: Any) -> None:
    # Before decoding: a file of a few kilobytes can state billions of pixels.
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise UnfitImageError(f"it states {width:,} x {height:,} pixels, more than {MOST_PIXELS:,}", _fewer_pixels())
    if image.mode.startswith(_DEEP):
        raise UnfitImageError(
            f"it has more than 8 bits per channel (mode {image.mode}), which Pillow would clip, not scale",
            "Convert it to 8 bits per channel.",
        )


def _fewer_pixels() -> str:
    return f"Resize it to at most {MOST_PIXELS:,} pixels, or remove it."
