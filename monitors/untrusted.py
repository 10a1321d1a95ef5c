"""Files that somebody else may have written: regular, of bounded size, and JSON of bounded depth."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from monitors.atomic import require_regular

#: Largest file that is read as text: 64 MiB.
MAX_TEXT_BYTES = 2**26

#: Largest ledger or journal: 1 GiB. With a million different steps, a ledger has about 200 MB.
MAX_LEDGER_BYTES = 2**30

#: Deepest nesting of JSON values; what dpmodel writes is at most about 20 deep.
MAX_DEPTH = 64

#: Longest integer, in characters. Every such integer is also a finite float.
MAX_DIGITS = 308

_TOO_DEEP = object()


def open_untrusted(path: str | os.PathLike[str]) -> BinaryIO:
    """The regular file ``path``, opened for reading without waiting for a pipe or opening a device.

    Args:
        path: The file. Links are followed.

    Raises:
        OSError: The file is missing or not a regular file, or the path holds a NUL character.

    Example:
        >>> open_untrusted("/dev/zero")
        Traceback (most recent call last):
            ...
        OSError: [Errno 22] not a regular file: '/dev/zero'
    """
    name = os.fspath(path)
    if "\0" in name:
        raise FileNotFoundError(errno.ENOENT, "a path cannot hold a NUL character", name)
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file", name)
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    handle = os.open(path, flags)
    try:
        require_regular(handle, path)  # it may have been replaced since
    except BaseException:
        os.close(handle)
        raise
    return os.fdopen(handle, "rb")


def read_untrusted(path: str | os.PathLike[str], limit: int = MAX_TEXT_BYTES) -> bytes:
    """Content of the regular file ``path``.

    Args:
        path: The file. Links are followed.
        limit: Largest accepted size in bytes.

    Raises:
        OSError: As for ``open_untrusted``.
        ValueError: The file is larger than ``limit``; path and sizes are named.
    """
    with open_untrusted(path) as stream:
        # A size that is stated is not read in vain; a file that grows meanwhile is not read to its end.
        size = os.fstat(stream.fileno()).st_size
        content = b"" if size > limit else stream.read(limit + 1)
    if max(size, len(content)) > limit:
        raise ValueError(f"{path} is larger than {limit:,} bytes, the largest size that is read here")
    return content


def read_text(path: str | os.PathLike[str], limit: int = MAX_TEXT_BYTES) -> str:
    """Text of the regular UTF-8 file ``path``.

    Raises:
        OSError: As for ``read_untrusted``.
        ValueError: The file is too large, or not UTF-8; the path is named.
    """
    try:
        return read_untrusted(path, limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error.reason} at byte {error.start}") from error


def parse_json(text: str) -> Any:
    """The JSON value that ``text`` states.

    Raises:
        ValueError: The text is not JSON, or is nested deeper than ``MAX_DEPTH``, or a number is longer than
            ``MAX_DIGITS``.

    Example:
        >>> parse_json('{"epsilon": 3.0}')
        {'epsilon': 3.0}
        >>> parse_json("[" * 100_000)
        Traceback (most recent call last):
            ...
        ValueError: JSON nested deeper than 64 levels
    """
    try:
        value = json.loads(text, parse_int=_integer)
    except RecursionError:
        value = _TOO_DEEP
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [item for container in level for item in _items(container) if isinstance(item, (dict, list))]
        if not level and value is not _TOO_DEEP:
            return value
    raise ValueError(f"JSON nested deeper than {MAX_DEPTH} levels")


def read_json(path: str | os.PathLike[str], limit: int = MAX_TEXT_BYTES) -> Any:
    """The JSON value in the file ``path``.

    Raises:
        OSError: As for ``read_untrusted``.
        ValueError: The file is too large or not JSON, or exceeds the limits of ``parse_json``; the path is named.
    """
    text = read_text(path, limit)
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f"{Path(path)} is not JSON that can be read: {error}") from error


def _items(container: Any) -> Iterable[Any]:
    if isinstance(container, dict):
        return container.values()
    return container if isinstance(container, list) else ()


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"the number {digits[:12]}... of {len(digits)} characters is too long")
    return int(digits)
