"""The identity of this process: a forked child has a new one, so that it never repeats the parent's random numbers."""

from __future__ import annotations

import mmap
import os
import sys

_TOKEN_BYTES = 16
_UNSET = bytes(_TOKEN_BYTES)

#: ``MADV_WIPEONFORK``, which Python knows only if it was built with recent headers.
_WIPE_ON_FORK = 18


def process_identity() -> tuple[int, bytes]:
    """Process ID and a random token; a copy of this process never has the same pair.

    The process ID alone does not suffice: in separate PID namespaces, parent and child may have the same. The token is
    renewed by Python's fork hook and, on Linux, lies in memory that the kernel clears in every child, also in one that
    other code than Python has forked.

    Example:
        >>> process_identity() == process_identity()
        True
    """
    token = bytes(_token[:])
    if token == _UNSET:
        token = os.urandom(_TOKEN_BYTES)
        _token[:] = token
    return os.getpid(), token


def _forget() -> None:
    _token[:] = _UNSET


def _wiped_on_fork() -> bytearray | memoryview:
    if sys.platform != "linux":
        return bytearray(_TOKEN_BYTES)
    page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        page.madvise(getattr(mmap, "MADV_WIPEONFORK", _WIPE_ON_FORK))
    except OSError:  # kernels before 4.14; the hook remains
        return bytearray(_TOKEN_BYTES)
    return memoryview(page)[:_TOKEN_BYTES]


_token = _wiped_on_fork()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
