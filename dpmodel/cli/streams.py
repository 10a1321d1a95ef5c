"""Standard output and error that do not end a command when their reader closes them."""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: Name of the error handler of the streams.
READABLE = "dpmodel.readable"


class PatientStream(io.TextIOWrapper):
    """A text stream over a pipe that discards its output once the reader has closed the pipe.

    A training piped into ``head`` has spent privacy budget that cannot be recovered, so a closed pipe must not end it.

    Args:
        stream: The stream to replace; it must have a file descriptor and must not be used afterwards.
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
        """Write ``text``, or drop it if the reader has gone."""
        return self._patiently(lambda: super(PatientStream, self).write(text), len(text))

    def flush(self) -> None:
        """Flush, or drop what is buffered if the reader has gone."""
        self._patiently(super().flush, None)

    def _patiently(self, action: Callable[[], T], otherwise: T) -> T:
        try:
            return action()
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            # The buffers are drained there too, so that the flush at the end of the process succeeds.
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return otherwise


def make_patient() -> None:
    """Make standard output and error survive a closed pipe and characters that the terminal cannot show."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper):
            continue
        stream.reconfigure(errors=READABLE)
        # Tests and notebooks install streams of other classes, or without a descriptor.
        if type(stream) is io.TextIOWrapper and _has_descriptor(stream):
            stream.flush()
            setattr(sys, name, PatientStream(stream))


def _has_descriptor(stream: io.TextIOWrapper) -> bool:
    try:
        stream.fileno()
    except (OSError, ValueError):
        return False
    return True


def _readable(error: UnicodeError) -> tuple[str | bytes, int]:
    """Write undecodable bytes of a path as they are, and other characters as escapes; "?" would hide the path."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]
    if 0xDC80 <= ord(character) <= 0xDCFF:
        return bytes([ord(character) - 0xDC00]), error.start + 1
    return character.encode("ascii", "backslashreplace"), error.start + 1


codecs.register_error(READABLE, _readable)
