"""A forward pass in which every module is shown one example, while its kernels run on the whole batch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack
from torch._library.custom_ops import OPDEFS
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.func import vmap

from mechanisms.engines.batch import map_tensors
from mechanisms.engines.substitutes import Substitutes
from monitors.errors import UnsupportedModuleError

_functorch: Any = torch._C._functorch
_APPLY: Any = vars(torch.autograd.Function)["apply"]
_REGISTER_HOOK: Any = torch.Tensor.register_hook
_GRAD_FN: Any = torch._C.TensorBase.grad_fn

#: Packages whose autograd functions may see a whole batch: what they do with its rows is known.
_TRUSTED = ("torch.", "mechanisms.")

#: Such hooks are handed the tensors of the whole batch.
_NO_HOOKS = "saved tensor hooks (activation checkpointing, for instance) would be handed the whole batch"

#: Parts of PyTorch's messages about what a vectorised function must not do.
_SIGNS = ("vmap", "Batching rule", "functorch", "BatchedTensor", "doesn't have storage", "broadcast shape", _NO_HOOKS)

#: Characters of PyTorch's reason that are passed on.
_LONGEST_REASON = 300

#: Level of the outermost transform of ``torch.func``.
_OUTERMOST = 1


def isolated(function: Callable[..., Tensor], *nests: Any) -> Tensor:
    """``function`` of every example by itself: shape (B, *shape of one result).

    The function runs once, under ``torch.func.vmap`` with shared weights: each tensor that it sees holds one example,
    as a batch of one. It cannot express an operation over the examples of the batch, and what would make the control
    flow of Python depend on an example (``if x.max() > 1``, ``.item()``, a mask that picks rows) is an error. Random
    numbers are drawn for each example separately. Autograd works outside of it, on the tensors of the whole batch.

    Args:
        function: Of one example; takes one argument per nest, of the same structure.
        nests: Nests of tensors whose first dimension counts the same B examples.

    Raises:
        UnsupportedModuleError: The function cannot be vectorised, for PyTorch's own reason, or it uses an autograd
            function with a vectorisation rule of its own.

    Example:
        >>> isolated(lambda x: (x / x.max()).sum(), torch.tensor([[1.0, 1.0], [1.0, 3.0]]))
        tensor([2.0000, 1.3333])
    """

    def of_one(*examples: Any) -> Tensor:
        return function(*(map_tensors(lambda value: value.unsqueeze(0), example) for example in examples))

    with examples_only(), disable_saved_tensors_hooks(_NO_HOOKS):
        found: Tensor = vmap(of_one, in_dims=0, randomness="different")(*nests)
    return found


@contextmanager
def examples_only() -> Iterator[None]:
    """Around a vectorised call: no rule of the user's is handed the whole batch, and PyTorch's refusals are explained.

    Raises:
        UnsupportedModuleError: The call needs to look at more than one example, or at its numbers.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it has no derivative
    try:
        with _GuardedFunctions(), Substitutes():
            yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        if not any(sign in reason for sign in _SIGNS):
            raise  # an error of the network or the loss itself
        raise UnsupportedModuleError(
            f"the examples of a batch cannot be isolated: {reason[:_LONGEST_REASON]}"
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def rows_of(value: Any) -> Tensor | None:
    """What all examples hold in place of ``value``, shape (B, *value.shape); None where they share it.

    Call inside of ``isolated``; work on the result belongs into ``on_batch``.

    Raises:
        UnsupportedModuleError: The network is inside of a transform of ``torch.func`` of its own.
    """
    if not isinstance(value, Tensor) or not _functorch.is_functorch_wrapped_tensor(value):
        return None
    if not _functorch.is_batchedtensor(value) or _functorch.maybe_get_level(value) != _OUTERMOST:
        raise UnsupportedModuleError("a layer is called inside of a transform of torch.func that the network applies")
    rows: Tensor = _functorch.get_unwrapped(value)
    dim = _functorch.maybe_get_bdim(value)
    if dim:
        with on_batch():
            rows = rows.movedim(dim, 0)
    return rows


def example_of(rows: Tensor) -> Tensor:
    """The tensor of one example that stands for ``rows``, shape (B, ...): the inverse of ``rows_of``."""
    found: Tensor = _functorch._add_batch_dim(rows, 0, _OUTERMOST)
    return found


@contextmanager
def on_batch() -> Iterator[None]:
    """Inside of ``isolated``, work on the tensors of the whole batch: for layers that treat every row alone."""
    with temporarily_pop_interpreter_stack():
        yield


class _GuardedFunctions:
    """While active in any thread, autograd functions of other packages with a vmap rule of their own are refused."""

    _lock: ClassVar = threading.Lock()
    _active: ClassVar[int] = 0

    def __enter__(self) -> None:
        with self._lock:
            type(self)._active += 1
            torch.autograd.Function.apply = classmethod(_guarded_apply)
            torch.Tensor.register_hook = _guarded_hook  # type: ignore[method-assign]
            torch.Tensor.grad_fn = _GUARDED_GRAPH
            for operator in tuple(OPDEFS.values()):
                rule = operator._vmap_fn
                if rule is not None and not isinstance(rule, _GuardedRule):
                    operator._vmap_fn = _GuardedRule(operator._qualname, rule)

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            type(self)._active -= 1
            if not self._active:
                torch.autograd.Function.apply = _APPLY
                torch.Tensor.register_hook = _REGISTER_HOOK  # type: ignore[method-assign]
                del torch.Tensor.grad_fn


class _GuardedRule:
    """The vectorisation rule of an operator of the user's: refused in an isolated pass, itself otherwise."""

    def __init__(self, name: str, rule: Callable[..., Any]) -> None:
        self._name, self._rule = name, rule

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if _GuardedFunctions._active:
            raise _own_rule(f"operator {self._name}")
        return self._rule(*args, **kwargs)


def _guarded_apply(cls: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
    _refuse_own_rule(cls)
    return _APPLY.__get__(None, cls)(*args, **kwargs)


def _guarded_hook(tensor: Tensor, hook: Callable[..., Any]) -> Any:
    _refuse_graph(tensor, "a hook on the gradient of a tensor")
    return _REGISTER_HOOK(tensor, hook)


def _guarded_graph(tensor: Tensor) -> Any:
    _refuse_graph(tensor, "grad_fn, the place of a tensor in the graph of autograd,")
    return _GRAD_FN.__get__(tensor)


#: Set on the class of tensors itself, in front of the attribute that it inherits.
_GUARDED_GRAPH: Any = property(_guarded_graph)


def _refuse_graph(tensor: Tensor, what: str) -> None:
    if _functorch.is_functorch_wrapped_tensor(tensor):
        raise UnsupportedModuleError(f"{what} would be handed the whole batch; engine 'loop' takes it")


def _refuse_own_rule(cls: type[torch.autograd.Function]) -> None:
    trusted = cls.__module__.startswith(_TRUSTED)
    if not trusted and _functorch.maybe_current_level() is not None and cls.vmap is not torch.autograd.Function.vmap:
        raise _own_rule(f"autograd function {cls.__name__}")


def _own_rule(what: str) -> UnsupportedModuleError:
    return UnsupportedModuleError(
        f"{what} has a vmap rule of its own, which is handed the whole batch, so that what it does to the examples is "
        "not known; leave the rule out (an autograd function may set generate_vmap_rule = True)"
    )
