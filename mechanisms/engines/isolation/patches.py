"""Ways out of an isolated pass, and what stands in their place while one is under way."""

from __future__ import annotations

import threading
from typing import Any, ClassVar

#: Where something is closed: owner, name, what stands there meanwhile, and what stood there (None: it is inherited).
WAYS: list[tuple[Any, str, Any, Any]] = []


class Patches:
    """While a pass is active in any thread, ways out of vmap are closed to those who are in one."""

    _lock: ClassVar = threading.Lock()
    _active: ClassVar[int] = 0

    @classmethod
    def install(cls) -> None:
        """Close them."""
        with cls._lock:
            cls._active += 1
            for owner, name, guarded, _ in WAYS:
                setattr(owner, name, guarded)

    @classmethod
    def remove(cls) -> None:
        """Open them, when nobody is in a pass any more."""
        with cls._lock:
            cls._active -= 1
            if cls._active:
                return
            for owner, name, _, original in WAYS:
                if original is None:
                    delattr(owner, name)
                else:
                    setattr(owner, name, original)
