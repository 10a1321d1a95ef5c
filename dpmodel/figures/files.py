"""Saves figures as files."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from monitors.atomic import SHARED_FILE, write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Formats that a figure can be saved in.
FORMATS = ("png", "svg", "pdf")
#: Formats that figures are saved in by default.
DEFAULT_FORMATS = ("png", "svg")
DOTS_PER_INCH = 150


def require_format(path: str | os.PathLike[str]) -> str:
    """The format that the file extension of ``path`` names.

    Raises:
        ValueError: Figures cannot be saved in that format.
    """
    ending = Path(path).suffix.lower().lstrip(".")
    if ending not in FORMATS:
        raise ValueError(f"figures are saved as {', '.join('.' + name for name in FORMATS)}, got {os.fspath(path)!r}")
    return ending


def save_figure(figure: Figure, path: str | os.PathLike[str], *, mode: int = SHARED_FILE) -> None:
    """Write ``figure`` to ``path`` atomically; the extension chooses the format (``.png``, ``.svg``, ``.pdf``).

    Args:
        figure: The figure.
        path: The file.
        mode: Permissions of the file, before the umask. Default: those of any file, because figures are made to be
            shown.

    Raises:
        ValueError: Unknown extension.
    """
    write_atomically(path, figure_bytes(figure, path), mode=mode)


def figure_bytes(figure: Figure, path: str | os.PathLike[str]) -> bytes:
    """Content of the file of ``figure`` in the format that the extension of ``path`` names.

    Raises:
        ValueError: Unknown extension.
    """
    import matplotlib

    kind, picture = require_format(path), io.BytesIO()
    # TrueType fonts, because many publishers refuse matplotlib's default, Type 3.
    with matplotlib.rc_context({"pdf.fonttype": 42}):
        figure.savefig(picture, format=kind, dpi=DOTS_PER_INCH, facecolor=figure.get_facecolor())
    return picture.getvalue()


def save_figures(
    figures: Mapping[str, Figure],
    folder: Path,
    formats: Sequence[str] = DEFAULT_FORMATS,
    *,
    mode: int = SHARED_FILE,
) -> list[Path]:
    """Write every figure into ``folder`` in each of ``formats``, as ``save_figure`` does, and return the paths."""
    written = [(folder / f"{name}.{kind}", figure) for name, figure in figures.items() for kind in formats]
    for path, figure in written:
        save_figure(figure, path, mode=mode)
    return [path for path, _ in written]
