"""Refuses writes of a network outside Python objects: to files, the environment, sockets, other processes."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from monitors.errors import UnprotectedUpdateError

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

#: Modules that write for their own purposes, such as caches of compiled code and logs.
_MACHINERY = (
    *("importlib", "_frozen_importlib", "weakref"),
    *("torch._", "torch.utils._", "torch.utils.cpp_extension", "torch.fx", "torch.compiler", "torch.cuda"),
    *("triton", "numba"),
)

_here = threading.local()


class Outside:
    """While active in a thread, refuses writes outside Python objects.

    A write is refused before it happens. If the code catches the refusal, it is raised again at the end.

    Raises:
        UnprotectedUpdateError: A file is opened for writing, moved or removed; the environment is changed; a socket is
            connected; or a process is started. Caches of compiled code and log files are allowed.

    Example:
        >>> with Outside():
        ...     os.environ["SEEN"] = "1"
        Traceback (most recent call last):
            ...
        monitors.errors.UnprotectedUpdateError: the network, the loss or a hook sets the environment variable SEEN ...
        >>> "SEEN" in os.environ
        False
    """

    _installed = False

    def __init__(self) -> None:
        self._refusal: UnprotectedUpdateError | None = None
        self._outer: Outside | None = None

    def __enter__(self) -> Outside:
        """Start listening to audit events."""
        if not Outside._installed:
            Outside._installed = True
            sys.addaudithook(_hear)  # an audit hook cannot be removed
        self._outer, _here.active = getattr(_here, "active", None), self
        return self

    def __exit__(self, *exception: Any) -> None:
        """See the class."""
        _here.active = self._outer
        refusal, self._refusal = self._refusal, None
        if refusal is not None and exception[1] is not refusal:
            raise refusal

    def refuse(self, what: str) -> None:
        """Refuse, now and at the end.

        Raises:
            UnprotectedUpdateError: Always.
        """
        self._refusal = UnprotectedUpdateError(
            f"the network, the loss or a hook {what} while it processes an example: information about one example that "
            "it stores there could reach the gradients of others. Do this in a callback, or before training"
        )
        raise self._refusal


def _hear(event: str, args: tuple[Any, ...]) -> None:
    describe = _EVENTS.get(event)
    if describe is None:
        return
    active: Outside | None = getattr(_here, "active", None)
    if active is None:
        return
    what = describe(args)
    if what is not None and not _is_machinery(sys._getframe(1)):
        active.refuse(what)


def _is_machinery(frame: FrameType | None) -> bool:
    """Whether the write comes from a module that may write, or from the standard library without a user's call."""
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        # Garbage is collected at any time, whatever code runs.
        if name.startswith(_MACHINERY) or frame.f_code.co_name == "__del__":
            return True
        # Only emit: creating a handler may create its file.
        if name.startswith("logging") and frame.f_code.co_name == "emit":
            return True
        if name.partition(".")[0] not in sys.stdlib_module_names:
            return False
        frame = frame.f_back
    return True


def _opens(args: tuple[Any, ...]) -> str | None:
    path, mode, flags = args
    writes = any(letter in mode for letter in "wax+") if isinstance(mode, str) else bool((flags or 0) & _WRITING)
    if not writes or isinstance(path, int) or os.fspath(path) in (os.devnull, os.devnull.encode()):
        return None
    return f"opens {_text(path)} for writing"


def _connects(args: tuple[Any, ...]) -> str | None:
    return None if args[0] in (":memory:", b":memory:") else f"opens the database {_text(args[0])}"


def _does(what: str) -> Callable[[tuple[Any, ...]], str]:
    return lambda args: f"{what} {_text(args[0])}" if args else what


def _other(what: str) -> Callable[[tuple[Any, ...]], str]:
    return lambda args: what


def _text(value: Any) -> str:
    return os.fsdecode(value) if isinstance(value, (str, bytes, os.PathLike)) else f"{value!r:.100}"


#: Audit events by name, each with a function that describes the write, or returns None if it is allowed.
_EVENTS: dict[str, Callable[[tuple[Any, ...]], str | None]] = {
    "open": _opens,
    "os.putenv": _does("sets the environment variable"),
    "os.unsetenv": _does("removes the environment variable"),
    "os.rename": _does("renames"),
    "os.remove": _does("removes"),
    "os.mkdir": _does("creates the folder"),
    "os.rmdir": _does("removes the folder"),
    "os.link": _does("links"),
    "os.symlink": _does("links"),
    "os.truncate": _does("truncates"),
    "os.chmod": _does("changes the mode of"),
    "os.utime": _does("changes the times of"),
    "os.setxattr": _does("changes the attributes of"),
    "os.chown": _does("changes the owner of"),
    "os.chdir": _does("changes to the folder"),
    "sqlite3.connect": _connects,
    "socket.connect": _other("connects a socket"),
    "socket.bind": _other("binds a socket"),
    "socket.sendto": _other("sends through a socket"),
    "socket.sendmsg": _other("sends through a socket"),
    "subprocess.Popen": _other("starts a process"),
    "os.system": _other("starts a process"),
    "os.exec": _other("starts a process"),
    "os.posix_spawn": _other("starts a process"),
    "os.fork": _other("starts a process"),
    "os.forkpty": _other("starts a process"),
}
