"""What code is told, and given, that runs once for all examples under ``torch.func.vmap``."""

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

#: Functions that allocate without a value, by the object that has them.
_ALLOCATING = ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty"))


class Substitutes:
    """While active in any thread, vectorised code gets other answers from a few functions of PyTorch.

    ``torch.compiler.is_compiling()`` is True for packages other than PyTorch: libraries ask it before they look at
    numbers to take a shorter way (whether a mask hides anything, for instance), which cannot be done for all examples
    at once, as it cannot be done in a graph.

    Memory without a value belongs to each example from the start, so that random numbers or parts of an example can be
    written into it in place.

    Within ``shared_draws``, ``torch.rand(())`` draws one number for all examples of a step, so that it can decide
    whether a layer is left out: what does not depend on an example may be looked at. See ``SharedDraws``.

    All lead to the same distributions as for one example, or to an error: isolation does not rest on them.
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
    """Random numbers of no dimension are drawn once for all examples of a pass, as they are for a plain batch."""
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
    """Number of examples where the innermost transform is the one over them."""
    if _functorch.maybe_current_level() != 1:
        return None
    interpreter: Any = retrieve_current_functorch_interpreter()
    return interpreter.batch_size() if hasattr(interpreter, "batch_size") else None
