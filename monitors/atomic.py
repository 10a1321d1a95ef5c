"""Files that a crash, a link or another user of the machine cannot damage: atomic, private, never through a link."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
import secrets
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

#: Mode of a file that may contain training losses; the umask may restrict it further.
PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700

#: Mode of a file that is made to be shared, such as a configuration; the umask restricts it.
SHARED_FILE = 0o666

_NO_LINKS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)

#: Errors of opening a link without following it.
_IS_A_LINK = {errno.ELOOP, errno.EMLINK}

#: Temporary files of interrupted writes, of the kinds that are written here; earlier versions named them by process ID.
_LEFTOVER = re.compile(r"\..+\.(json|jsonl|csv|md|html|yaml|safetensors|ckpt|png|svg|pdf)\.([0-9a-f]{16}|\d+)\.tmp")


def write_atomically(
    path: str | os.PathLike[str],
    content: bytes | str,
    *,
    mode: int = PRIVATE_FILE,
    folder: int | None = None,
    flush: bool = True,
) -> None:
    """Write ``content`` to a temporary file beside ``path``, flush it to disk, and rename it over ``path``.

    A crash leaves the old file or the new one, never a partial one. The temporary file has a random name and is never
    opened through a link; a link at ``path`` is replaced, not followed.

    Args:
        path: The file. Missing parent folders are created, unless ``folder`` is given.
        content: Its new content; text is encoded as UTF-8.
        mode: Permissions of the new file, before the umask.
        folder: Handle of the open folder of ``path``, which then stays the same folder if it is moved.
        flush: Whether it must be on the disk before the call returns. If not, it may be empty after a power cut.

    Raises:
        OSError: The file cannot be written; it is named, and its old content is unchanged.
    """
    target = Path(path)
    if folder is None:
        target.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode("utf-8") if isinstance(content, str) else content
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    opened, named = (temporary, target) if folder is None else (Path(temporary.name), Path(target.name))
    with naming(target):
        handle = os.open(opened, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINKS, mode, dir_fd=folder)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                if flush:
                    os.fsync(stream.fileno())
            os.replace(opened, named, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(opened, dir_fd=folder)
            raise
        if flush:
            sync_folder(target.parent if folder is None else folder)


def open_for_appending(
    path: str | os.PathLike[str], *, create: bool = True, mode: int = PRIVATE_FILE, folder: int | None = None
) -> int:
    """A handle that reads and appends to the regular file ``path``.

    Args:
        path: The file.
        create: Whether to create a missing file.
        mode: Permissions of a new file, before the umask.
        folder: Handle of the open folder of ``path``.

    Raises:
        OSError: The file is a link or not a regular file, or cannot be opened.
    """
    return _open_regular(path, os.O_RDWR | os.O_APPEND | (os.O_CREAT if create else 0), mode, folder)


def read_without_links(path: str | os.PathLike[str], *, folder: int | None = None, limit: int = sys.maxsize) -> bytes:
    """Content of the regular file ``path``.

    Args:
        path: The file.
        folder: Handle of the open folder of ``path``.
        limit: Largest accepted size in bytes.

    Raises:
        OSError: The file is a link, not a regular file or larger than ``limit``, or cannot be opened.
    """
    with os.fdopen(_open_regular(path, os.O_RDONLY, 0, folder), "rb") as stream:
        if os.fstat(stream.fileno()).st_size > limit:
            raise OSError(errno.EFBIG, f"larger than {limit:,} bytes", os.fspath(path))
        return stream.read()


def _changed(entry: os.DirEntry[str]) -> float:
    try:
        return entry.stat(follow_symlinks=False).st_mtime
    except FileNotFoundError:  # written to its end meanwhile
        return math.inf


def _open_regular(path: str | os.PathLike[str], flags: int, mode: int, folder: int | None) -> int:
    name = Path(path) if folder is None else Path(path).name
    with naming(path):
        # Without O_NONBLOCK, opening a named pipe would wait for its other end.
        handle = os.open(name, flags | _NO_LINKS | getattr(os, "O_NONBLOCK", 0), mode, dir_fd=folder)
        try:
            require_regular(handle, path)
        except BaseException:
            os.close(handle)
            raise
    return handle


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Name the file ``path`` in the errors of the system, instead of none or of a temporary one.

    Example:
        >>> with naming("ledger.json"):
        ...     raise OSError(errno.ENOSPC, "No space left on device")
        Traceback (most recent call last):
            ...
        OSError: [Errno 28] No space left on device: 'ledger.json'
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        words = "it is a link, which is not followed" if error.errno in _IS_A_LINK else error.strerror
        raise OSError(error.errno, words, os.fspath(path)) from error


def require_regular(handle: int, path: str | os.PathLike[str]) -> None:
    """Refuse an open file that is not a regular one, such as a named pipe or a device.

    Raises:
        OSError: It is not a regular file; ``path`` is named.
    """
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))


def sync_folder(folder: Path | int) -> None:
    """Flush the directory entries of ``folder`` to disk, so that a new or renamed file survives a power cut."""
    # Systems without directory handles (Windows) flush the entries themselves.
    if not hasattr(os, "O_DIRECTORY"):
        return
    if isinstance(folder, int):
        os.fsync(folder)
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_leftovers(folder: Path | int, *, older_than: float | None = None) -> list[str]:
    """Remove the temporary files of writes that a killed process never finished, and return their names.

    Args:
        folder: Path or handle of the folder.
        older_than: Seconds since their last change, more than any write takes. None: all; the caller must then hold the
            lock of the folder, as another process may be writing.
    """
    latest = math.inf if older_than is None else time.time() - older_than
    with os.scandir(folder) as entries:
        leftovers = [entry for entry in entries if _LEFTOVER.fullmatch(entry.name)]
        found = sorted(entry.name for entry in leftovers if older_than is None or _changed(entry) < latest)
    for name in found:
        with contextlib.suppress(FileNotFoundError, IsADirectoryError, PermissionError):
            if isinstance(folder, int):
                os.unlink(name, dir_fd=folder)
            else:
                os.unlink(folder / name)
    return found
