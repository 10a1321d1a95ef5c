"""One process at a time works in a folder: a lock that the system releases when its process dies."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

from monitors.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows has no flock; there nothing is locked.
    fcntl = None  # type: ignore[assignment]

LOCK_NAME = ".lock"


class FolderLock:
    """Holds a folder for this process, as a context manager; a missing folder is created.

    Guarantees: a folder has at most one holder at a time, among all processes of one machine; a killed process,
    ``kill -9`` included, no longer holds it. The lock file is removed on release. Windows has no such locks: do not
    start two trainings in one folder there.

    Args:
        path: The folder.

    Raises:
        ConfigError: Another process holds it (the message gives its ID), or the folder cannot be created.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> with FolderLock(folder):
        ...     FolderLock(folder).acquire()
        Traceback (most recent call last):
            ...
        monitors.errors.ConfigError: the folder ... is in use by process ...
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._handle: int | None = None
        self._made = False

    def acquire(self) -> None:
        """Take the lock, again if the folder was moved since."""
        self._close()
        try:
            self._made = self._made or not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            self._handle = self._locked_file()
        except OSError as error:
            raise ConfigError(f"the folder {self.path} cannot be used: {error.strerror or error}") from error

    def release(self) -> None:
        """Release the lock; a folder that was created for it and is still empty is removed."""
        if self._handle is None:
            return
        if self._is_current(self._handle):
            (self.path / LOCK_NAME).unlink()
        self._close()
        if self._made and self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()

    def _locked_file(self) -> int:
        while True:
            handle = os.open(self.path / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                self._flock(handle)
            except BlockingIOError:
                holder = os.read(handle, 32).decode("ascii", "replace").strip()
                os.close(handle)
                raise ConfigError(
                    f"the folder {self.path} is in use by process {holder or '(unknown ID)'}; wait until it is "
                    "done, or choose a different folder"
                ) from None
            except BaseException:
                os.close(handle)
                raise
            # The previous holder may have removed the file between opening and locking.
            if self._is_current(handle):
                os.ftruncate(handle, 0)
                os.write(handle, str(os.getpid()).encode())
                return handle
            os.close(handle)

    @staticmethod
    def _flock(handle: int) -> None:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _is_current(self, handle: int) -> bool:
        try:
            return os.path.samestat(os.fstat(handle), (self.path / LOCK_NAME).stat())
        except FileNotFoundError:
            return False

    def _close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __enter__(self) -> FolderLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
