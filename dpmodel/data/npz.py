"""A user's own tensors from one numpy archive."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpmodel.data.splits import RawSplits
from monitors import _checks
from monitors.errors import DataError, MissingDataError

KEYS = ("x_train", "y_train", "x_test", "y_test")


def npz(root: str | os.PathLike[str], num_classes: int | None = None) -> RawSplits:
    """Arrays ``x_train``, ``y_train``, ``x_test``, ``y_test`` of a ``.npz`` file (``numpy.savez``).

    Args:
        root: The file.
        num_classes: Number of classes. None: the largest label plus one, over both parts.

    Shapes:
        x (N, height, width) or (N, channels, height, width) of uint8 for images, (N, ...) of floats otherwise (read as
        float32); y (N,) of whole numbers from 0 on.

    Raises:
        MissingDataError: There is no such file.
        DataError: Not such an archive, an array is missing, or of the wrong type. Pickled objects are never loaded.
    """
    file = Path(root).expanduser()
    if not file.is_file():
        raise MissingDataError(
            f"{file} does not exist; data.root must be an .npz file with the arrays {', '.join(KEYS)}"
        )
    arrays = _arrays(file)
    x_train, x_test = (_inputs(arrays[key], f"{file}: {key}") for key in ("x_train", "x_test"))
    y_train, y_test = (_labels(arrays[key], f"{file}: {key}") for key in ("y_train", "y_test"))
    if num_classes is None:
        num_classes = int(max(y_train.max(initial=0), y_test.max(initial=0))) + 1
    return RawSplits(x_train, torch.from_numpy(y_train), x_test, torch.from_numpy(y_test), num_classes, str(file))


def _arrays(file: Path) -> dict[str, np.ndarray[Any, Any]]:
    try:
        with np.load(file, allow_pickle=False) as archive:
            names = list(getattr(archive, "files", ()))
            absent = [key for key in KEYS if key not in names]
            if absent:
                strangers = [name for name in names if name not in KEYS]
                hint = _checks.nearest_hint(absent[0], strangers) or ";"
                raise DataError(f"{file} has no array {', '.join(absent)}{hint} It has: {', '.join(names) or 'none'}")
            return {key: archive[key] for key in KEYS}
    except DataError:
        raise
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"{file} is no readable .npz archive of plain arrays: {error}") from error


def _inputs(values: np.ndarray[Any, Any], name: str) -> Tensor:
    if values.dtype == np.uint8:
        if values.ndim not in (3, 4):
            raise DataError(
                f"{name}: images must be (N, height, width) or (N, channels, height, width), got {values.shape}"
            )
        images = torch.from_numpy(np.ascontiguousarray(values))
        return images.unsqueeze(1) if values.ndim == 3 else images
    if not np.issubdtype(values.dtype, np.floating):
        raise DataError(f"{name}: inputs must be uint8 images or floats, got {values.dtype}")
    if values.ndim < 2:
        raise DataError(f"{name}: inputs must have one row per example, got shape {values.shape}")
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


def _labels(values: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer):
        raise DataError(
            f"{name}: labels must be one whole number per example, got {values.dtype} of shape {values.shape}"
        )
    return values.astype(np.int64)
