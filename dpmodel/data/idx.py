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

TYPES: dict[int, str] = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
GZIP_MAGIC = b"\x1f\x8b"
PIECE_BYTES = 1 << 24


def read_idx(path: str | os.PathLike[str], dimensions: int | None = None) -> np.ndarray[Any, Any]:
    """Read one IDX file.

    The header is two zero bytes, a type code, the number of dimensions, and each size as a big-endian 32-bit number.

    Args:
        path: The file; whether it is compressed is seen from its first bytes, not its name.
        dimensions: The number of dimensions that it must have (3 for images, 1 for labels); None takes any.

    Returns:
        Array of the type and shape that the header states, in the machine's byte order.

    Raises:
        MissingDataError: There is no such file.
        DataError: Not an IDX file, of other dimensions, too short, too long, or damaged; the file is named.
    """
    file = Path(path)
    if not file.is_file():
        raise MissingDataError(f"data file {file} does not exist")
    try:
        with _opened(file) as stream:
            dtype, shape = _header(stream, file, dimensions)
            expected = math.prod(shape) * dtype.itemsize
            # One byte more than stated shows trailing bytes, and makes gzip reach and check its own checksum.
            content = _read_at_most(stream, expected + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"data file {file} is damaged or cannot be read: {error}. Fetch it again.") from error
    if len(content) != expected:
        much = "longer" if len(content) > expected else f"only {len(content):,} bytes"
        raise DataError(
            f"data file {file} states {expected:,} bytes of data for shape {shape} and is {much}. Fetch it again."
        )
    values = np.frombuffer(content, dtype=dtype).reshape(shape)
    return values.astype(dtype.newbyteorder("="))


def _opened(file: Path) -> IO[bytes]:
    with file.open("rb") as stream:
        compressed = stream.read(2) == GZIP_MAGIC
    return cast(IO[bytes], gzip.open(file, "rb")) if compressed else file.open("rb")


def _read_at_most(stream: IO[bytes], count: int) -> bytes:
    # In pieces, because a damaged header may state more bytes than there is memory, and read would reserve them all.
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
            f"{file} is no IDX file: it starts with {magic.hex() or 'nothing'}, not with 0000, a type and a rank"
        )
    if dimensions is not None and magic[3] != dimensions:
        raise DataError(f"{file} has {magic[3]} dimensions, expected {dimensions}: images and labels may be swapped")
    sizes = stream.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise DataError(f"data file {file} ends within its header. Fetch it again.")
    return np.dtype(TYPES[magic[2]]), tuple(int(size) for size in np.frombuffer(sizes, dtype=">u4"))
