"""Locks of objects that are copied and pickled."""

from __future__ import annotations

import threading
from typing import Any


class OwnLock:
    """A re-entrant lock; each copy of the object that holds it, also a pickled one, gets a lock of its own.

    Example:
        >>> import copy
        >>> lock = OwnLock()
        >>> with lock, lock, copy.deepcopy(lock) as other:
        ...     other is lock
        False
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> OwnLock:
        self._lock.acquire()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[OwnLock], tuple[()]]:
        return OwnLock, ()
