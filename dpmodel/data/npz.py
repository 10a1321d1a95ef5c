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
        num_classes: Number of classes. None: the largest label plus one, over both parts. For numbers to predict it is
            how many each example has.

    Shapes:
        x (N, height, width) or (N, channels, height, width) of uint8 for images, (N, ...) of floats otherwise (read as
        float32); y (N,) of whole numbers from 0 on for classes, or (N, k) or (N,) of floats for regression (read as
        float32, shape (N, k) or (N, 1)).

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
    y_train, y_test = (_targets(arrays[key], f"{file}: {key}") for key in ("y_train", "y_test"))
    if num_classes is None:
        num_classes = y_train.shape[1] if y_train.dim() > 1 else _largest(y_train, y_test) + 1
    return RawSplits(x_train, y_train, x_test, y_test, num_classes, str(file))


def _largest(*labels: Tensor) -> int:
    return max(int(values.max()) for values in labels if values.numel()) if any(map(len, labels)) else 0


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


def _targets(values: np.ndarray[Any, Any], name: str) -> Tensor:
    if values.ndim == 1 and np.issubdtype(values.dtype, np.integer):
        return torch.from_numpy(values.astype(np.int64))
    if values.ndim in (1, 2) and np.issubdtype(values.dtype, np.floating):
        numbers = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
        return numbers.unsqueeze(1) if values.ndim == 1 else numbers
    raise DataError(
        f"{name}: targets must be one whole number per example (its class), or one or several floats (regression), got "
        f"{values.dtype} of shape {values.shape}"
    )
