"""Arrays from a NumPy archive."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpmodel.data import locations
from dpmodel.data.splits import RawSplits
from monitors import checks
from monitors.errors import DataError, MissingDataError

KEYS = ("x_train", "y_train", "x_test", "y_test")

#: First bytes of an archive of ``numpy.savez``; the second is that of an archive without arrays.
ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")

HOW_TO_MAKE = f"make one with numpy.savez('data.npz', {', '.join(f'{key}=...' for key in KEYS)})"

#: Types of inputs that are used as integers, such as tokens.
_WHOLE = (np.dtype(np.int64), np.dtype(np.int32))


def npz(root: str | os.PathLike[str], num_classes: int | None = None) -> RawSplits:
    """Arrays ``x_train``, ``y_train``, ``x_test``, ``y_test`` of a ``.npz`` file (``numpy.savez``).

    Args:
        root: The file.
        num_classes: Number of classes; None: the largest training label plus one. For regression, the number of
            targets per example.

    Shapes:
        x: images are uint8 (N, height, width) or (N, channels, height, width); integers such as tokens are int64 or
        int32 (N, ...), read as int64; other inputs are floats (N, ...), read as float32. y: class labels are integers
        (N,) from 0 on; targets for regression or multi-label classification are floats (N, k) or (N,), read as float32
        of shape (N, k) or (N, 1).

    Raises:
        MissingDataError: The file does not exist.
        DataError: The file is not such an archive, or an array is missing or has the wrong type. Pickled objects are
            never loaded.
    """
    file = locations.full_path(root)
    if not file.is_file():
        raise MissingDataError(
            f"{file} does not exist; data.root must be an .npz file with the arrays {', '.join(KEYS)}"
        )
    arrays = _arrays(file)
    x_train, x_test = (_inputs(arrays[key], f"{file}: {key}") for key in ("x_train", "x_test"))
    y_train, y_test = (_targets(arrays[key], f"{file}: {key}") for key in ("y_train", "y_test"))
    if num_classes is None:
        # From the training labels only: a stray test label must not give the network more outputs.
        num_classes = y_train.shape[1] if y_train.dim() > 1 else _largest(y_train) + 1
    return RawSplits(x_train, y_train, x_test, y_test, num_classes, str(file))


def _largest(labels: Tensor) -> int:
    return int(labels.max()) if labels.numel() else 0


def _arrays(file: Path) -> dict[str, np.ndarray[Any, Any]]:
    try:
        _require_archive(file)
        with np.load(file, allow_pickle=False) as archive:
            names = list(archive.files)
            absent = [key for key in KEYS if key not in names]
            if absent:
                strangers = [name for name in names if name not in KEYS]
                hint = checks.nearest_hint(absent[0], strangers) or ";"
                raise DataError(f"{file} has no array {', '.join(absent)}{hint} It has: {', '.join(names) or 'none'}")
            return {key: archive[key] for key in KEYS}
    except DataError:
        raise
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"{file} is not a readable .npz archive of plain arrays: {error}") from error


def _require_archive(file: Path) -> None:
    # NumPy treats anything other than an archive as a pickle and suggests loading it, which would run its code.
    with file.open("rb") as stream:
        if stream.read(len(ZIP_MAGIC[0])) not in ZIP_MAGIC:
            raise DataError(f"{file} is not an .npz archive; {HOW_TO_MAKE}")


def _inputs(values: np.ndarray[Any, Any], name: str) -> Tensor:
    if values.dtype == np.uint8:
        if values.ndim not in (3, 4):
            raise DataError(
                f"{name}: images must be (N, height, width) or (N, channels, height, width), got {values.shape}"
            )
        images = torch.from_numpy(np.ascontiguousarray(values))
        return images.unsqueeze(1) if values.ndim == 3 else images
    whole = values.dtype.newbyteorder("=") in _WHOLE
    if not whole and not np.issubdtype(values.dtype, np.floating):
        raise DataError(
            f"{name}: inputs must be uint8 (images), floats, or int64 or int32 (integers such as tokens), got "
            f"{values.dtype}; convert them with astype, for example astype('int64') for tokens"
        )
    if values.ndim < 2:
        raise DataError(f"{name}: inputs must have one row per example, got shape {values.shape}")
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64 if whole else np.float32))


def _targets(values: np.ndarray[Any, Any], name: str) -> Tensor:
    if values.ndim == 1 and np.issubdtype(values.dtype, np.integer):
        return torch.from_numpy(values.astype(np.int64))
    if values.ndim in (1, 2) and np.issubdtype(values.dtype, np.floating):
        numbers = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
        return numbers.unsqueeze(1) if values.ndim == 1 else numbers
    raise DataError(
        f"{name}: targets must be one integer per example (its class), or one or more floats (regression), got "
        f"{values.dtype} of shape {values.shape}{_remedy(values)}"
    )


def _remedy(values: np.ndarray[Any, Any]) -> str:
    """What to do about targets that look like several labels per example, or have an extra dimension."""
    if values.ndim != 2 or values.dtype.kind not in "biu":
        return ""
    if values.shape[1] == 1:
        return "; for classes give them as shape (N,), with y[:, 0]"
    return "; for several labels per example (multi-label) convert to float32, with y.astype('float32')"
