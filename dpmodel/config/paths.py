"""Location of the data in a configuration: relative to the file that states it, recorded as a full path."""

from __future__ import annotations

import os
import re
from pathlib import Path

from monitors import checks
from monitors.errors import ConfigError

#: Place of a setting that was read from a file, as ``marked_yaml`` writes it.
_FILE_AND_LINE = re.compile(r"(?!--set )(?P<file>.+):\d+", re.DOTALL)

#: Endings of files of weights. Other values of ``features.weights`` are arguments of the network.
CHECKPOINTS = (".safetensors", ".ckpt")


def locate_data(root: str, place: str, setting: str = "data.root") -> str:
    """``root`` as a full path, so that a run folder leads to the same data from any current folder.

    A relative path in a file is relative to that file or, if only the current folder has such a path, to the current
    folder. A path from the command line or from Python is relative to the current folder. Symbolic links are not
    resolved. An address (``s3://...``) is left to its reader.

    Args:
        root: A file or folder; ``~`` is the home folder.
        place: Where it was written, such as ``"runs/mine.yaml:3"``.
        setting: The setting, for errors.

    Raises:
        ConfigError: ``root`` cannot be a path: it holds a NUL character, names an unknown user, or is too long.

    Example:
        >>> locate_data("/data/digits.npz", "run.yaml:3")
        '/data/digits.npz'
        >>> locate_data("s3://bucket/digits.npz", "run.yaml:3")
        's3://bucket/digits.npz'
    """
    if "://" in root:
        return root
    try:
        if "\0" in root:
            raise ValueError("it holds a NUL character")
        given = Path(root).expanduser()
        written = _FILE_AND_LINE.fullmatch(place)
        beside = (Path(written["file"]).parent if written else Path()) / given
        return os.path.abspath(beside if beside.exists() or not given.exists() else given)
    except (OSError, RuntimeError, ValueError) as error:  # an unknown user, a name that is too long, a NUL character
        raise ConfigError(f"{place}: {setting} {checks.shown(root)} is not a path: {error}") from error
