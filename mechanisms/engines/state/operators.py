"""Refuses operators with unreachable Python kernels, whose state cannot be restored."""

from __future__ import annotations

import re
import sysconfig
import threading
from functools import lru_cache
from pathlib import PurePath
from typing import Any, ClassVar

import torch
from torch._library import custom_ops
from torch._ops import OpOverload, OpOverloadPacket

from monitors.errors import UnprotectedUpdateError

#: Folders of installed packages, whose operators are trusted to keep no state.
_INSTALLED = tuple({sysconfig.get_paths()[name] for name in ("purelib", "platlib")})
_PACKAGES = frozenset(("site-packages", "dist-packages"))

#: Files of PyTorch that register Python kernels for users: any kernel, and those of ``custom_op``.
_FOR_OTHERS = (torch.library.__file__, custom_ops.__file__)

#: Lines of PyTorch's description of an operator: the file of its definition, and the file of the kernel for each key.
_DEFINED = re.compile(r"^debug: registered at (?P<file>.+):\d+$", re.MULTILINE)
_KERNEL = re.compile(r"^(?P<key>\w+)(?:\[\w+\])?: registered at (?P<file>.+):\d+ ::", re.MULTILINE)

#: Dispatch keys whose kernels never see the values of an example that passes alone.
_WITHOUT_NUMBERS = frozenset(("Meta", "FuncTorchBatched"))

_here = threading.local()


class FollowedOperators:
    """While active in a thread, refuses calls of operators with unreachable Python kernels.

    PyTorch hides a function that is registered by ``torch.library.Library.impl``, and with it any state that the
    function keeps. Functions of ``torch.library.custom_op`` can be reached. If the code catches the refusal, it is
    raised again at the end.

    Raises:
        UnprotectedUpdateError: Such an operator is called; the message names it.
    """

    _lock: ClassVar = threading.Lock()
    _active: ClassVar[int] = 0

    def __init__(self) -> None:
        self._refusal: UnprotectedUpdateError | None = None
        self._outer: FollowedOperators | None = None

    def __enter__(self) -> FollowedOperators:
        """Start checking calls."""
        with self._lock:
            FollowedOperators._active += 1
            for kind, _, looked_at in _CALLS:
                kind.__call__ = looked_at
        self._outer, _here.active = getattr(_here, "active", None), self
        return self

    def __exit__(self, *exception: Any) -> None:
        """See the class."""
        _here.active = self._outer
        with self._lock:
            FollowedOperators._active -= 1
            if not FollowedOperators._active:
                for kind, original, _ in _CALLS:
                    kind.__call__ = original
        refusal, self._refusal = self._refusal, None
        if refusal is not None and exception[1] is not refusal:
            raise refusal

    def require_followed(self, operator: Any) -> None:
        """Refuse an operator with an unreachable kernel, now and at the end.

        Raises:
            UnprotectedUpdateError: The operator has such a kernel.
        """
        packet = operator.overloadpacket if isinstance(operator, OpOverload) else operator
        name = packet._qualified_op_name
        if any(_is_out_of_reach(f"{name}.{key}", len(torch.library._impls)) for key in packet.overloads()):
            self._refusal = UnprotectedUpdateError(
                f"operator {name} has a Python kernel that was registered by torch.library.impl or a Library: state "
                "that it keeps of one example cannot be restored, and could reach the gradients of others. Define the "
                "operator with torch.library.custom_op, whose state is restored"
            )
            raise self._refusal


def _looked_at(original: Any) -> Any:
    def call(operator: Any, /, *args: Any, **kwargs: Any) -> Any:
        active: FollowedOperators | None = getattr(_here, "active", None)
        if active is not None:
            active.require_followed(operator)
        return original(operator, *args, **kwargs)

    return call


@lru_cache(maxsize=4096)
def _is_out_of_reach(name: str, registered: int) -> bool:
    """Whether a user's kernel is unreachable; ``registered`` (the number of Python kernels) only keys the cache."""
    del registered
    known = torch._C._dispatch_dump(name.removesuffix(".default"))
    defined = _DEFINED.search(known)
    by_user = defined is not None and (_is_users(defined["file"]) or defined["file"] in _FOR_OTHERS)
    kernels = [kernel["file"] for kernel in _KERNEL.finditer(known) if kernel["key"] not in _WITHOUT_NUMBERS]
    return any(_is_users(file) or (by_user and file == _FOR_OTHERS[0]) for file in kernels)


def _is_users(file: str) -> bool:
    """Whether a file is a Python file outside installed packages."""
    return file.endswith(".py") and not file.startswith(_INSTALLED) and _PACKAGES.isdisjoint(PurePath(file).parts)


#: Classes whose calls are checked: the class, its original ``__call__``, and the replacement.
_CALLS: list[tuple[Any, Any, Any]] = [
    (kind, kind.__call__, _looked_at(kind.__call__)) for kind in (OpOverload, OpOverloadPacket)
]
