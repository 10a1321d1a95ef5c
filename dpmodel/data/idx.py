"""The IDX file format of MNIST, plain or gzip-compressed."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from monitors.errors import DataError, MissingDataError
from monitors.untrusted import open_untrusted

TYPES: dict[int, str] = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
GZIP_MAGIC = b"\x1f\x8b"
PIECE_BYTES = 1 << 24


def read_idx(path: str | os.PathLike[str], dimensions: int | None = None) -> np.ndarray[Any, Any]:
    """Read one IDX file.

    The header has two zero bytes, a type code, the number of dimensions, and each size as a big-endian 32-bit integer.

    Args:
        path: The file. Compression is detected from its first bytes, not from its name.
        dimensions: Required number of dimensions (3 for images, 1 for labels); None accepts any.

    Returns:
        Array with the type and shape stated in the header, in native byte order.

    Raises:
        MissingDataError: The file does not exist.
        DataError: The file is not an IDX file, has the wrong number of dimensions or the wrong length, or is damaged.
    """
    file = Path(path)
    if not file.exists():
        raise MissingDataError(f"data file {file} does not exist")
    try:
        with _opened(file) as stream:
            dtype, shape = _header(stream, file, dimensions)
            expected = math.prod(shape) * dtype.itemsize
            # Reading one byte more than stated reveals trailing bytes, and makes gzip verify its checksum.
            content = _read_at_most(stream, expected + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"data file {file} is damaged or cannot be read: {error}. Download it again.") from error
    except MemoryError as error:
        raise DataError(
            f"data file {file} states {expected:,} bytes of data for shape {shape}, which do not fit into memory"
        ) from error
    if len(content) != expected:
        much = "more" if len(content) > expected else f"only {len(content):,}"
        raise DataError(
            f"data file {file} states {expected:,} bytes of data for shape {shape} but has {much}. Download it again."
        )
    values = np.frombuffer(content, dtype=dtype).reshape(shape)
    return values.astype(dtype.newbyteorder("="))


def _opened(file: Path) -> IO[bytes]:
    stream = open_untrusted(file)
    compressed = stream.read(2) == GZIP_MAGIC
    stream.seek(0)
    return cast(IO[bytes], gzip.GzipFile(fileobj=stream)) if compressed else stream


def _read_at_most(stream: IO[bytes], count: int) -> bytes:
    # In pieces, because a damaged header may state more bytes than fit into memory, and read would allocate them all.
    content = bytearray()
    while len(content) < count:
        piece = stream.read(min(count - len(content), PIECE_BYTES))
        if not piece:
            break
        content += piece
    return bytes(content)


def _header(stream: IO[bytes], file: Path, dimensions: int | None) -> tuple[np.dtype[Any], tuple[int, ...]]:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in TYPES or magic[3] == 0:
        raise DataError(
            f"{file} is not an IDX file: it starts with {magic.hex() or 'nothing'}, not with 0000, a type and a rank"
        )
    if dimensions is not None and magic[3] != dimensions:
        raise DataError(f"{file} has {magic[3]} dimensions, expected {dimensions}: images and labels may be swapped")
    sizes = stream.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise DataError(f"data file {file} ends within its header. Download it again.")
    return np.dtype(TYPES[magic[2]]), tuple(int(size) for size in np.frombuffer(sizes, dtype=">u4"))
