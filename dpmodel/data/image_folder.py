"""Images in folders, one folder per class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpmodel.data import locations
from dpmodel.data.splits import RawSplits
from monitors import checks
from monitors.errors import DataError, MissingDataError
from monitors.untrusted import open_untrusted

ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
#: The formats of these endings, as Pillow names them. Others, such as EPS, start further programs.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "PPM", "TIFF")

#: Most pixels of one image: 64 million, as of a large camera.
MOST_PIXELS = 2**26

MODES = {1: "L", 3: "RGB"}
LAYOUT = "train/<class>/*.png and test/<class>/*.png"


def image_folder(root: str | os.PathLike[str], channels: int = 3, image_size: int | None = None) -> RawSplits:
    """Images in ``root/train/<class>/`` and ``root/test/<class>/``, decoded once into memory.

    Classes are numbered in the alphabetical order of the folders in ``train``.

    Args:
        root: The folder.
        channels: 3 for colour, 1 for grey; other images are converted.
        image_size: Height and width to which every image is resized; None requires that all have the same size.

    Raises:
        MissingDataError: A folder does not exist or is empty.
        DataError: A class has no training folder, an image cannot be read, or the sizes differ.
    """
    checks.one_of(MODES, channels=channels)
    folder = locations.full_path(root)
    for part in ("train", "test"):
        if not (folder / part).is_dir():
            raise MissingDataError(f"{folder / part} does not exist; an image folder must contain {LAYOUT}")
    classes = _classes(folder / "train")
    train = _part(folder / "train", classes, channels, image_size)
    test = _part(folder / "test", classes, channels, image_size)
    return RawSplits(*train, *test, num_classes=len(classes), source=f"{folder} ({', '.join(classes)})")


def _classes(folder: Path) -> list[str]:
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise MissingDataError(f"{folder} contains no class folders; an image folder must contain {LAYOUT}")
    return names


def _part(folder: Path, classes: Sequence[str], channels: int, size: int | None) -> tuple[Tensor, Tensor]:
    strangers = sorted(set(_classes(folder)) - set(classes))
    if strangers:
        raise DataError(
            f"{folder} has the class {strangers[0]!r}, which has no training folder; classes: {', '.join(classes)}"
        )
    files: list[Path] = []
    labels: list[int] = []
    for number, name in enumerate(classes):
        found = sorted(path for path in (folder / name).glob("*") if path.suffix.lower() in ENDINGS)
        files += found
        labels += [number] * len(found)
    if not files:
        raise MissingDataError(f"the class folders in {folder} contain no images ({', '.join(sorted(ENDINGS))})")
    # Pillow releases the interpreter lock while it decodes, so threads use every core.
    with ThreadPoolExecutor() as pool:
        images = list(pool.map(lambda path: decoded(path, MODES[channels], size), files))
    _check_sizes(files, images)
    return torch.from_numpy(np.stack(images)), torch.tensor(labels)


def decoded(path: Path, mode: str, size: int | None) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """One image, uint8 of shape (channels, height, width).

    Args:
        path: The file.
        mode: A value of ``MODES``.
        size: Height and width to which it is resized; None keeps its size.

    Raises:
        DataError: It cannot be read, or is too large.
    """
    from PIL import Image

    try:
        with open_untrusted(path) as stream, Image.open(stream, formats=FORMATS) as image:
            _require_few_pixels(image.size, size)
            converted = image.convert(mode)
            if size is not None and converted.size != (size, size):
                converted = converted.resize((size, size), Image.Resampling.BILINEAR)
            pixels = np.asarray(converted, dtype=np.uint8)
    except (Exception, MemoryError) as error:  # Pillow raises a dozen types of exception for damaged files
        raise DataError(f"image {path} cannot be read: {error}. Repair or remove it.") from error
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _require_few_pixels(shape: tuple[int, int], size: int | None) -> None:
    # Before decoding: a file of a few kilobytes can state billions of pixels.
    if shape[0] * shape[1] > MOST_PIXELS:
        remedy = "" if size is None else "; resize it before training"
        raise ValueError(f"it states {shape[0]:,} x {shape[1]:,} pixels, more than {MOST_PIXELS:,}{remedy}")


def _check_sizes(files: Sequence[Path], images: Sequence[np.ndarray[Any, Any]]) -> None:
    for path, image in zip(files, images, strict=True):
        if image.shape != images[0].shape:
            raise DataError(
                f"images differ in size: {files[0]} is {images[0].shape[1:]} and {path} is {image.shape[1:]}; "
                "set data.image_size"
            )
