"""Where the data of a configuration lie: relative to the file that says so, recorded in full."""

from __future__ import annotations

import os
import re
from pathlib import Path

#: Place of a setting that was read from a file, as ``marked_yaml`` writes it.
_FILE_AND_LINE = re.compile(r"(?!--set )(?P<file>.+):\d+", re.DOTALL)


def locate_data(root: str, place: str) -> str:
    """``root`` as a full path, so that a run folder finds the same data from everywhere.

    A relative path is relative to the file that states it; where nothing is there, to the current folder, if it is
    there. What was stated on the command line or in Python is relative to the current folder. Links are not followed:
    the path stays the one that was chosen. An address (``s3://...``) is left to its reader.

    Args:
        root: A file or folder; ``~`` is the home folder.
        place: Where it was written, such as ``"runs/mine.yaml:3"``.

    Example:
        >>> locate_data("/data/digits.npz", "run.yaml:3")
        '/data/digits.npz'
        >>> locate_data("s3://bucket/digits.npz", "run.yaml:3")
        's3://bucket/digits.npz'
    """
    if "://" in root:
        return root
    given = Path(root).expanduser()
    written = _FILE_AND_LINE.fullmatch(place)
    beside = (Path(written["file"]).parent if written else Path()) / given
    return os.path.abspath(beside if beside.exists() or not given.exists() else given)
