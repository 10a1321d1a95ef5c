"""Standard output and error that never end a command: whoever reads them may go away."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class PatientStream(io.TextIOWrapper):
    """A text stream over a pipe that goes on into nothing when its reader has closed it.

    A training behind ``| head`` has spent budget that no other training gives back; it must not end for a line of text.

    Args:
        stream: The stream to stand in for; it must have a file descriptor, and is used no more.
    """

    def __init__(self, stream: io.TextIOWrapper) -> None:
        super().__init__(
            stream.buffer,
            encoding=stream.encoding,
            errors=stream.errors,
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )

    def write(self, text: str, /) -> int:
        """Write ``text``, or drop it where nobody reads any more."""
        return self._patiently(lambda: super(PatientStream, self).write(text), len(text))

    def flush(self) -> None:
        """Flush, or drop what is left where nobody reads any more."""
        self._patiently(super().flush, None)

    def _patiently(self, action: Callable[[], T], otherwise: T) -> T:
        try:
            return action()
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            # What is still in the buffers goes there as well, so that the flush at the end of the process succeeds.
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return otherwise


def make_patient() -> None:
    """Let the process's own output and error survive a closed pipe, and characters that the terminal cannot show."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper):
            continue
        stream.reconfigure(errors="replace")
        # Streams that a test or a notebook has put there are of other classes, or have no descriptor.
        if type(stream) is io.TextIOWrapper and _has_descriptor(stream):
            stream.flush()
            setattr(sys, name, PatientStream(stream))


def _has_descriptor(stream: io.TextIOWrapper) -> bool:
    try:
        stream.fileno()
    except (OSError, ValueError):
        return False
    return True
