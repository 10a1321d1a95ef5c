"""Arrays from a NumPy archive."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from dpmodel.data import locations
from dpmodel.data.splits import RawSplits
from monitors import checks
from monitors.errors import DataError, MissingDataError
from monitors.untrusted import open_untrusted

KEYS = ("x_train", "y_train", "x_test", "y_test")

#: First bytes of an archive of ``numpy.savez``; the second is that of an archive without arrays.
ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")

#: First bytes of a file of ``numpy.save``.
NPY_MAGIC = b"\x93NUMPY"

HOW_TO_MAKE = f"make one with numpy.savez('data.npz', {', '.join(f'{key}=...' for key in KEYS)})"

#: Readers of the header of an array, by the version of its format, and its longest length in characters.
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
MAX_HEADER = 10_000

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
    if not _exists(file):
        raise MissingDataError(
            f"{file} does not exist; data.root must be an .npz file with the arrays {', '.join(KEYS)}"
        )
    arrays = _arrays(file)
    x_train, x_test = (stored_inputs(arrays[key], f"{file}: {key}") for key in ("x_train", "x_test"))
    y_train, y_test = (_targets(arrays[key], f"{file}: {key}") for key in ("y_train", "y_test"))
    counted = num_classes is None and y_train.dim() == 1
    if num_classes is None:
        # From the training labels only: a stray test label must not give the network more outputs.
        num_classes = y_train.shape[1] if y_train.dim() > 1 else _largest(y_train) + 1
    return RawSplits(x_train, y_train, x_test, y_test, num_classes, str(file), counted)


def read_array(path: str | os.PathLike[str], key: str = "x") -> np.ndarray[Any, Any]:
    """One array of a ``.npy`` file, or of a ``.npz`` file that holds it alone or under ``key``.

    Raises:
        MissingDataError: The file does not exist.
        DataError: It is not such a file, or holds several arrays and none is named ``key``. Pickled objects are never
            loaded.
    """
    file = locations.full_path(path)
    if not _exists(file):
        raise MissingDataError(f"{file} does not exist")
    with _reading(file), open_untrusted(file) as stream:
        magic = stream.read(len(NPY_MAGIC))
        stream.seek(0)
        if magic == NPY_MAGIC:
            _require_size(stream, os.fstat(stream.fileno()).st_size, file, "the array")
            stream.seek(0)
            found: np.ndarray[Any, Any] = np.load(stream, allow_pickle=False)
            return found
        if not magic.startswith(ZIP_MAGIC):
            raise DataError(f"{file} is neither a .npy nor a .npz file; make one with numpy.save('x.npy', x)")
        names = zipfile.ZipFile(stream).namelist()
        name = names[0].removesuffix(".npy") if len(names) == 1 else key
        if f"{name}.npy" not in names:
            raise DataError(
                f"{file} holds {', '.join(names) or 'no array'}; name one of its arrays {key!r}, or keep one"
            )
        stream.seek(0)
        with _archive(stream, file, (name,)) as archive:
            chosen: np.ndarray[Any, Any] = archive[name]
            return chosen


def _largest(labels: Tensor) -> int:
    return int(labels.max()) if labels.numel() else 0


def _arrays(file: Path) -> dict[str, np.ndarray[Any, Any]]:
    with _reading(file), open_untrusted(file) as stream, _archive(stream, file, KEYS) as archive:
        names = list(archive.files)
        absent = [key for key in KEYS if key not in names]
        if absent:
            strangers = [name for name in names if name not in KEYS]
            hint = checks.nearest_hint(absent[0], strangers) or "."
            raise DataError(f"{file} has no array {', '.join(absent)}{hint} It has: {', '.join(names) or 'none'}")
        return {key: archive[key] for key in KEYS}


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(f"{file} states arrays that do not fit into memory") from error
    except Exception as error:  # zipfile, zlib and NumPy raise a dozen types of exception for damaged files
        reason = checks.shortened(" ".join(str(error).split()))
        raise DataError(f"{file} is not a readable {_kind(file)} of plain arrays: {reason}") from error


def _kind(file: Path) -> str:
    return ".npy file" if file.suffix == ".npy" else ".npz archive"


def _archive(stream: BinaryIO, file: Path, keys: Iterable[str]) -> Any:
    # NumPy treats anything other than an archive as a pickle and suggests loading it, which would run its code.
    if stream.read(len(ZIP_MAGIC[0])) not in ZIP_MAGIC:
        raise DataError(f"{file} is not an .npz archive; {HOW_TO_MAKE}")
    stream.seek(0)
    with zipfile.ZipFile(stream) as archive:
        for key in keys:
            if f"{key}.npy" in archive.namelist():
                _require_stated_size(archive, key, file)
    stream.seek(0)
    return np.load(stream, allow_pickle=False)


def _require_stated_size(archive: zipfile.ZipFile, key: str, file: Path) -> None:
    """Refuse an array whose shape and type do not give the bytes it has: NumPy would allocate what the shape states."""
    with archive.open(f"{key}.npy") as member:
        _require_size(member, archive.getinfo(f"{key}.npy").file_size, file, key)


def _require_size(member: IO[bytes], size: int, file: Path, name: str) -> None:
    version = np.lib.format.read_magic(member)
    if version not in _HEADERS:
        raise DataError(f"{file}: {name} has the unknown format {version}")
    shape, _, dtype = _HEADERS[version](member, max_header_size=MAX_HEADER)
    stated = math.prod(shape) * dtype.itemsize
    left = size - member.tell()
    if dtype.hasobject:
        raise DataError(f"{file} is not a readable {_kind(file)} of plain arrays: {name} holds Python objects")
    if stated != left:
        raise DataError(f"{file}: {name} states {stated:,} bytes for shape {shape} of {dtype}, but has {left:,}")


def _exists(file: Path) -> bool:
    try:
        return file.exists()
    except OSError:  # a name that is too long
        return False


def stored_inputs(values: np.ndarray[Any, Any], name: str) -> Tensor:
    """Inputs as a data set stores them; ``name`` says in errors where they are from.

    Raises:
        DataError: They have the wrong type or shape.
    """
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
