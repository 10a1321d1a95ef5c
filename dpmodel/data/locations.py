"""Where data files are looked for, and what is said when they are not there."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from monitors.errors import MissingDataError

DOWNLOAD_TIMEOUT_S = 30.0


def cache_folder() -> Path:
    """``$DPMODEL_CACHE``, or ``~/.cache/dpmodel`` (under ``$XDG_CACHE_HOME`` where that is set)."""
    own = os.environ.get("DPMODEL_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "dpmodel"


def full_path(root: str | os.PathLike[str]) -> Path:
    """``root`` from the top of the file system, so that an error says where was looked whatever the current folder."""
    return Path(root).expanduser().absolute()


def embedded_folders() -> tuple[Path, ...]:
    """Folders of data that come with a source checkout: that of this package, and the current one."""
    return Path(__file__).resolve().parents[2] / "examples" / "data", Path.cwd() / "examples" / "data"


def first_complete(folders: Sequence[Path], files: Sequence[str]) -> dict[str, Path] | None:
    """The paths of ``files`` in the first folder that has them all, each plain or with ``.gz``; None where none has."""
    for folder in folders:
        found = {name: _existing(folder, name) for name in files}
        complete = {name: path for name, path in found.items() if path is not None}
        if len(complete) == len(files):
            return complete
    return None


def fetch(download: Callable[[Path], object], into: Path, what: str, files: Sequence[str], put: Path) -> None:
    """Run a download of torchvision into ``into``.

    Args:
        download: Called with the folder.
        into: The folder, made where missing.
        what: Name of the data set.
        files: The files it consists of.
        put: Where a user may put them by hand.

    Raises:
        MissingDataError: The download failed; says why, and which files to put where.
    """
    try:
        into.mkdir(parents=True, exist_ok=True)
        with _network_timeout():
            download(into)
    except Exception as error:
        raise missing(what, files, put, f"the download failed ({type(error).__name__}: {error})") from error


def missing(what: str, files: Sequence[str], put: Path, why: str) -> MissingDataError:
    """The error for data that are not there."""
    return MissingDataError(
        f"{what} was not found: {why}. Put {', '.join(files)} into {put}, "
        "or set data.root to the folder that holds them."
    )


def _existing(folder: Path, name: str) -> Path | None:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    return None


@contextlib.contextmanager
def _network_timeout() -> Iterator[None]:
    # torchvision opens its connections without a limit: behind a silent firewall a training would hang for ever.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
