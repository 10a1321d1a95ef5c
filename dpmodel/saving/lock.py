"""One process at a time works in a folder: a lock that the system releases when its process dies."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from pathlib import Path
from types import TracebackType

from monitors.atomic import (
    PRIVATE_FILE,
    PRIVATE_FOLDER,
    naming,
    open_for_appending,
    remove_leftovers,
    write_atomically,
)
from monitors.errors import CheckpointError, ConfigError

try:
    import fcntl
except ImportError:  # Windows has no flock; there nothing is locked.
    fcntl = None  # type: ignore[assignment]

LOCK_NAME = ".lock"

#: Errors of a file system that has no locks.
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}

#: Systems without handles of folders (Windows) name the files; there, a folder with an open file cannot be moved.
_HAS_HANDLES = hasattr(os, "O_DIRECTORY") and {os.open, os.unlink, os.rename, os.stat} <= os.supports_dir_fd


#: A process that only asks who holds a folder is done within this time.
_ASKING_SECONDS = 0.05


class FolderInUseError(ConfigError):
    """A different process holds the folder ``path``."""

    path: Path | None = None


class FolderLock:
    """Holds a folder for this process, as a context manager; a missing folder is created, private to the user.

    Guarantees: a folder has at most one holder at a time, among all processes of one machine, and of all machines
    between which its file system passes ``flock``; a killed process, ``kill -9`` included, no longer holds it. The
    folder is held open: if it is moved, what is written and removed here follows it, and a different folder at the old
    path is never touched. Temporary files that a killed process left are removed. The lock file is removed on release.
    Windows has no such locks: do not start two trainings in one folder there.

    Args:
        path: The folder. It may be a link; the files in it may not.

    Raises:
        FolderInUseError: Another process holds it; the message gives its ID.
        ConfigError: The folder cannot be created, its lock file is a link or not a regular file, or its file system has
            no locks.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> with FolderLock(folder):
        ...     FolderLock(folder).acquire()
        Traceback (most recent call last):
            ...
        dpmodel.saving.lock.FolderInUseError: the folder ... is in use by process ...
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._place = self.path  # as an absolute path, whatever the current folder is later
        self._folder: int | None = None
        self._lock: int | None = None
        self._made = False

    def acquire(self) -> None:
        """Take the lock, again if the folder was moved since."""
        self._close()
        self._place = self.path.absolute()
        try:
            self._made = self._made or not self.path.exists()
            self.path.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
            if _HAS_HANDLES:
                self._folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._lock = self._locked_file()
            remove_leftovers(self.path if self._folder is None else self._folder)
        except OSError as error:
            self._give_up()
            raise ConfigError(f"the folder {self.path} cannot be used: {_reason(error)}") from error
        except BaseException:
            self._give_up()
            raise

    def discard(self) -> None:
        """Remove the folder on release if it is empty then."""
        self._made = True

    def release(self) -> None:
        """Release the lock; a folder that was created for it or discarded, and is empty, is removed."""
        if self._lock is None:
            return
        if self._is_current(self._lock):
            self._unlink(LOCK_NAME)
        self._give_up()

    def handle(self) -> int | None:
        """Handle of the folder, for writing into it; None on a system without handles of folders.

        Raises:
            CheckpointError: The folder is no longer held, because it or its lock file was removed.
        """
        if self._lock is None or not self._is_current(self._lock):
            raise CheckpointError(
                f"{self.path / LOCK_NAME} was removed or replaced while the folder was in use, alone or with the "
                "folder. Nothing more is released or written, because the record of the releases may be lost and a "
                "different process may use the folder. Keep any copy of the folder: its releases count for the data, "
                "and it may lack the last ones"
            )
        return self._folder

    def write(self, path: Path, content: bytes | str) -> None:
        """Write the file ``path`` of the folder, atomically and private to the user.

        Raises:
            CheckpointError: As for ``handle``.
            OSError: The file cannot be written.
        """
        write_atomically(path, content, folder=self.handle())

    def remove(self, *paths: Path) -> None:
        """Remove files of the folder, as far as they exist.

        Raises:
            CheckpointError: As for ``handle``.
        """
        self.handle()
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                self._unlink(path.name)

    def holds(self, path: Path) -> bool:
        """Whether ``path`` is a file of the folder that exists."""
        with contextlib.suppress(FileNotFoundError):
            os.stat(path if self._folder is None else path.name, dir_fd=self._folder, follow_symlinks=False)
            return True
        return False

    def require_in_place(self) -> None:
        """Refuse to continue by name in a folder that was moved or removed.

        Raises:
            CheckpointError: The folder is not at its path.
        """
        self.handle()
        if self.moved:
            raise CheckpointError(
                f"{self.path} was moved while it was in use, so its results cannot be collected. Runs that began later "
                "are in a new folder at this path: merge the two folders, and repeat the command"
            )

    @property
    def moved(self) -> bool:
        """Whether the path now names a different folder, or none."""
        try:
            return self._folder is not None and not os.path.samestat(os.fstat(self._folder), self._place.stat())
        except OSError:
            return True

    def _locked_file(self) -> int:
        path = self.path / LOCK_NAME
        while True:
            handle = open_for_appending(path, mode=PRIVATE_FILE, folder=self._folder)
            try:
                self._flock(handle)
            except BlockingIOError:
                words = _holder_in_words(handle)
                os.close(handle)
                error = FolderInUseError(
                    f"the folder {self.path} is in use by {words}; wait until it is done, or choose a different folder"
                )
                error.path = self.path
                raise error from None
            except BaseException:
                os.close(handle)
                raise
            # The previous holder may have removed the file between opening and locking.
            if self._is_current(handle):
                if os.fstat(handle).st_nlink == 1:
                    os.ftruncate(handle, 0)
                    os.write(handle, f"{os.getpid()} {socket.gethostname()}".encode())
                    return handle
                self._unlink(LOCK_NAME)  # the other name of a hard link may be any file, which must not be changed
            os.close(handle)

    def _flock(self, handle: int) -> None:
        if fcntl is None:
            return
        try:
            with naming(self.path / LOCK_NAME), contextlib.suppress(BlockingIOError):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            time.sleep(_ASKING_SECONDS)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            self._unlink(LOCK_NAME)
            raise ConfigError(
                f"the file system of {self.path} has no locks ({error.strerror}), so two trainings could write into "
                "one folder; choose a folder on a different file system, such as a local disk"
            ) from error

    def _is_current(self, handle: int) -> bool:
        try:
            name = self.path / LOCK_NAME if self._folder is None else LOCK_NAME
            return os.path.samestat(os.fstat(handle), os.stat(name, dir_fd=self._folder, follow_symlinks=False))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):
                return False
            raise

    def _unlink(self, name: str) -> None:
        os.unlink(self.path / name if self._folder is None else name, dir_fd=self._folder)

    def _give_up(self) -> None:
        made, self._made = self._made and not self.moved, False
        self._close()
        if made:
            with contextlib.suppress(OSError):  # it is not empty
                self._place.rmdir()

    def _close(self) -> None:
        for handle in (self._lock, self._folder):
            if handle is not None:
                os.close(handle)
        self._lock = self._folder = None

    def __enter__(self) -> FolderLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def holder(path: str | os.PathLike[str]) -> str | None:
    """The process that holds the folder ``path``, in words; None if there is none.

    Nothing is created or changed. A process that takes the lock at this moment waits for the answer.

    Raises:
        ConfigError: The lock file cannot be opened, or its file system has no locks.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> with FolderLock(folder):
        ...     holder(folder) == f"process {os.getpid()}"
        True
        >>> print(holder(folder))
        None
    """
    if fcntl is None:
        return None
    try:
        handle = open_for_appending(Path(path) / LOCK_NAME, create=False)
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _holder_in_words(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
            raise ConfigError(f"the folder {path} cannot be used: {_reason(error)}") from error
    return None


def _holder_in_words(handle: int) -> str:
    number, _, host = os.pread(handle, 300, 0).decode("ascii", "replace").strip().partition(" ")
    place = f" on {host}" if host and host != socket.gethostname() else ""
    return f"process {number or '(unknown ID)'}{place}"


def _reason(error: OSError) -> str:
    named = f"{os.fspath(error.filename)}: " if error.filename else ""
    return f"{named}{error.strerror or error}"
