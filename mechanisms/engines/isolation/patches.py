"""Functions that lead out of an isolated pass, and their replacements during one."""

from __future__ import annotations

import threading
from typing import Any, ClassVar

#: Each function to close: its owner, its name, the replacement, and the original (None: it is inherited).
WAYS: list[tuple[Any, str, Any, Any]] = []


class Patches:
    """While a pass is active in any thread, functions that lead out of vmap are closed to code inside a pass."""

    _lock: ClassVar = threading.Lock()
    _active: ClassVar[int] = 0

    @classmethod
    def install(cls) -> None:
        """Install the replacements."""
        with cls._lock:
            cls._active += 1
            for owner, name, guarded, _ in WAYS:
                setattr(owner, name, guarded)

    @classmethod
    def remove(cls) -> None:
        """Restore the originals once no pass is active."""
        with cls._lock:
            cls._active -= 1
            if cls._active:
                return
            for owner, name, _, original in WAYS:
                if original is None:
                    delattr(owner, name)
                else:
                    setattr(owner, name, original)
