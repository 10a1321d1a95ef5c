"""Where data files are searched, and the error if they are missing."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from monitors import checks
from monitors.errors import MissingDataError

DOWNLOAD_TIMEOUT_S = 30.0


def cache_folder() -> Path:
    """``$DPMODEL_CACHE``, or ``~/.cache/dpmodel`` (under ``$XDG_CACHE_HOME`` if that is set)."""
    own = os.environ.get("DPMODEL_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "dpmodel"


def full_path(root: str | os.PathLike[str], setting: str = "data.root") -> Path:
    """``root`` as an absolute path, so that an error names the folder that was searched; it states ``setting``."""
    try:
        return Path(root).expanduser().absolute()
    except (RuntimeError, TypeError) as error:  # the home of an unknown user, or no path
        raise MissingDataError(f"{setting} {checks.shown(root)} is not a path: {error}") from error


def embedded_folders() -> tuple[Path, ...]:
    """Data folders of a source checkout: next to this package, and in the current folder."""
    return Path(__file__).resolve().parents[2] / "examples" / "data", Path.cwd() / "examples" / "data"


def first_complete(folders: Sequence[Path], files: Sequence[str]) -> dict[str, Path] | None:
    """The paths of ``files``, each plain or with ``.gz``, in the first folder that has all; None if there is none."""
    for folder in folders:
        found = {name: _existing(folder, name) for name in files}
        complete = {name: path for name, path in found.items() if path is not None}
        if len(complete) == len(files):
            return complete
    return None


def fetch(download: Callable[[Path], object], into: Path, what: str, files: Sequence[str], put: Path) -> None:
    """Download into ``into`` with torchvision.

    Args:
        download: Called with the folder.
        into: The folder; created if missing.
        what: Name of the data set.
        files: The files of the data set.
        put: The folder in which the user may put them by hand.

    Raises:
        MissingDataError: The download failed; the message says why, and which files to put where.
    """
    try:
        into.mkdir(parents=True, exist_ok=True)
        with _network_timeout():
            download(into)
    except Exception as error:
        raise missing(what, files, put, f"the download failed ({type(error).__name__}: {error})") from error


def missing(what: str, files: Sequence[str], put: Path, why: str) -> MissingDataError:
    """The error for missing data."""
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
    # torchvision connects without a timeout, so a training behind a silent firewall would hang forever.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
