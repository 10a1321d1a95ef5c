"""Substitutes for a few functions of PyTorch, for code that runs under ``torch.func.vmap``."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter, temporarily_pop_interpreter_stack

from mechanisms.engines.isolation.shared_draws import current_draws

_functorch: Any = torch._C._functorch

#: Functions that allocate uninitialised memory, with their owners.
_ALLOCATING = ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty"))


class Substitutes:
    """While active in any thread, a few functions of PyTorch behave differently for vectorised code.

    ``torch.compiler.is_compiling()`` is True for packages other than PyTorch: libraries call it before they read values
    to take a shortcut (whether a mask hides anything, for instance), which is as impossible for all examples at once as
    in a graph.

    Uninitialised memory belongs to each example from the start, so that random numbers or parts of an example can be
    written into it in place.

    Inside ``shared_draws``, ``torch.rand(())`` draws one number for all examples of a step, so that it can decide
    whether to skip a layer: code may read values that do not depend on an example. See ``SharedDraws``.

    Each substitute gives the same distribution as for one example, or an error: isolation does not depend on them.
    """

    _lock: ClassVar = threading.Lock()
    _active: ClassVar[int] = 0
    _originals: ClassVar[list[tuple[Any, str, Any]]] = []

    def __enter__(self) -> None:
        with self._lock:
            type(self)._active += 1
            if self._active > 1:
                return
            type(self)._originals = [(owner, name, vars(owner).get(name)) for owner, name in _PLACES]
            for owner, name in _ALLOCATING:
                setattr(owner, name, _for_each_example(getattr(owner, name)))
            torch.rand = _drawn_once(torch.rand)
            torch.compiler.is_compiling = _told_of_a_graph(torch.compiler.is_compiling)

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            type(self)._active -= 1
            if self._active:
                return
            for owner, name, original in self._originals:
                if original is None:  # it was inherited
                    delattr(owner, name)
                else:
                    setattr(owner, name, original)


_PLACES = (*_ALLOCATING, (torch, "rand"), (torch.compiler, "is_compiling"))

_SHARED = ContextVar("shared draws", default=False)


@contextmanager
def shared_draws() -> Iterator[None]:
    """Draw scalar random numbers once for all examples of a pass, as for a plain batch."""
    token = _SHARED.set(True)
    try:
        yield
    finally:
        _SHARED.reset(token)


def _told_of_a_graph(original: Callable[[], bool]) -> Callable[[], bool]:
    def is_compiling() -> bool:
        if _functorch.maybe_current_level() is None:
            return original()
        caller = sys._getframe(1).f_globals.get("__name__", "")
        return original() or not f"{caller}.".startswith("torch.")

    return is_compiling


def _drawn_once(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def rand(*args: Any, **kwargs: Any) -> Tensor:
        size = args[0] if args else kwargs.get("size")
        if not _SHARED.get() or _examples() is None or not isinstance(size, (tuple, list)) or len(size):
            return original(*args, **kwargs)
        step = current_draws()
        with temporarily_pop_interpreter_stack():
            return original(*args, **kwargs) if step is None else step.number(original, *args, **kwargs)

    return rand


def _for_each_example(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def allocate(*args: Any, **kwargs: Any) -> Tensor:
        made = original(*args, **kwargs)
        size = _examples()
        if size is None or _functorch.is_functorch_wrapped_tensor(made) or kwargs.get("out") is not None:
            return made
        with temporarily_pop_interpreter_stack():
            rows = made.new_empty((size, *made.shape))
        found: Tensor = _functorch._add_batch_dim(rows, 0, 1)
        return found

    return allocate


def _examples() -> int | None:
    """Number of examples if the innermost transform is the one over them; else None."""
    if _functorch.maybe_current_level() != 1:
        return None
    interpreter: Any = retrieve_current_functorch_interpreter()
    return interpreter.batch_size() if hasattr(interpreter, "batch_size") else None
