"""A CSV file that grows with its table."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from monitors.atomic import naming, open_for_appending, write_atomically


class TableFile:
    r"""Keeps a CSV file up to date with a table to which rows are added, at the cost of the new rows.

    The first update writes the whole file atomically, and so does one after other changes. Each of the others appends;
    a crash may then leave an incomplete last line, which ``History.from_csv`` ignores.

    Args:
        path: The file, private to the user. A link there is replaced at first, and refused afterwards.

    Example:
        >>> import tempfile
        >>> path, rows = Path(tempfile.mkdtemp()) / "table.csv", [[1, 0.5]]
        >>> file = TableFile(path)
        >>> file.update(["step", "loss"], lambda first: rows[first:])
        >>> rows.append([2, None])
        >>> file.update(["step", "loss"], lambda first: rows[first:])
        >>> path.read_text()
        'step,loss\n1,0.5\n2,\n'
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._columns: list[str] = []
        self._rows = 0
        self._last = b""
        self._size = 0

    def update(
        self, columns: Iterable[str], rows: Callable[[int], Sequence[Sequence[Any]]], *, folder: int | None = None
    ) -> None:
        """Write the rows that the file lacks.

        Args:
            columns: Names of the columns.
            rows: Returns the rows from an index on.
            folder: Handle of the open folder of the file, which then stays the same folder if it is moved.

        Raises:
            OSError: The file cannot be written; it is named.
        """
        names, written = list(columns), self._rows
        self._rows = 0  # until the rows are written: after a failure, the whole file is written again
        lines = _lines(rows(written - 1)) if written else []
        if lines and lines[0] == self._last and names == self._columns:
            written, lines = written - 1, lines if self._append(b"".join(lines[1:]), folder) else []
        else:
            lines = []
        if not lines:
            written, lines = 0, _lines(rows(0))
            content = b"".join([*_lines([names]), *lines])
            write_atomically(self.path, content, folder=folder)
            self._size = len(content)
        self._columns, self._rows, self._last = names, written + len(lines), lines[-1] if lines else b""

    def _append(self, content: bytes, folder: int | None) -> bool:
        """Append ``content``, unless the file was changed since the last update."""
        handle = open_for_appending(self.path, folder=folder)
        try:
            if os.fstat(handle).st_size != self._size:
                return False
            with naming(self.path):
                try:
                    while content:
                        written = os.write(handle, content)
                        self._size, content = self._size + written, content[written:]
                except OSError:
                    os.ftruncate(handle, self._size)
                    raise
            return True
        finally:
            os.close(handle)


def without_torn_line(text: str) -> str:
    r"""``text`` without a last line that a crash left incomplete.

    Example:
        >>> without_torn_line("step,loss\n1,0.5\n2")
        'step,loss\n1,0.5\n'
    """
    whole, newline, last = text.rpartition("\n")
    return whole + newline if newline and last.count(",") < text.partition("\n")[0].count(",") else text


def _lines(rows: Iterable[Sequence[Any]]) -> list[bytes]:
    lines, text = [], io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in rows:
        writer.writerow(row)
        lines.append(text.getvalue().encode("utf-8"))
        text.seek(0)
        text.truncate()
    return lines
