"""Moves activations behind the max-pooling that follows them: the same numbers for a quarter of the work.

A function f that never decreases commutes with the maximum: ``max_pool(f(x)) = f(max_pool(x))``. After a 2 x 2 pooling,
f and its derivative are evaluated on a quarter of the entries, and the full-size activation is never stored.

A network calls f first, so the result of f must be deferred: the call returns a ``Waiting`` placeholder. If the next
function of torch is a max-pooling of the placeholder, the two are swapped. Any other call computes the activation
first, and only the saving is lost. A placeholder is not a tensor, so code that tests types, and custom autograd
functions, which would treat it as a constant, could go wrong; hence three safeguards:

- ``pooling_of`` tries all activations once and names those whose placeholder met a max-pooling and nothing else.
- ``PoolFirst`` defers only those in later passes, and checks in each pass that it happened again (``sound``).
- The caller repeats a pass that is not sound without deferring anything (``passes.record_forward``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from mechanisms.engines.bookkeeping.layers.attention import attention_by_rows
from mechanisms.engines.bookkeeping.pooling import pool2x2, pooling_stride
from mechanisms.engines.isolation.rows import on_rows

_POOLS = (F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.max_pool1d, torch.max_pool2d, torch.max_pool3d)

#: Elementwise functions that never decrease: they commute with the maximum.
_RISING = (
    *(torch.relu, Tensor.relu, F.relu),
    *(torch.tanh, Tensor.tanh),
    *(torch.sigmoid, Tensor.sigmoid),
    *(torch.selu, F.selu),
)

#: All functions that the mode treats specially.
_TREATED = frozenset({*_POOLS, *_RISING, F.multi_head_attention_forward, F.scaled_dot_product_attention})


@dataclass(slots=True)
class Fate:
    """What happened to a deferred activation.

    Args:
        place: Its place among the activations of the pass.
        pooled: Whether a max-pooling was the first to use it.
        computed: Whether its own value was needed.
        kept: Returns the placeholder while anything still refers to it, else None.
    """

    place: int
    pooled: bool = False
    computed: bool = False
    kept: Callable[[], Waiting | None] = lambda: None

    @property
    def only_pooled(self) -> bool:
        """Whether a max-pooling was its only use, and nothing refers to it any more.

        A reference that is left could be used later, where the mode no longer sees it.
        """
        return self.pooled and not self.computed and self.kept() is None


class Waiting:
    """Placeholder for an activation that is not computed yet.

    It is not a tensor, so no code can read wrong numbers from it. Functions of torch, operators and attribute access
    compute ``function(x)`` and use that.

    Args:
        function: The activation function.
        x: Its argument.
        fate: Records what happens to the placeholder.
    """

    def __init__(self, function: Callable[..., Tensor], x: Tensor, fate: Fate) -> None:
        self.function, self.x, self.fate = function, x, fate
        self._value: Tensor | None = None
        fate.kept = ref(self)

    @property
    def value(self) -> Tensor:
        """The activation."""
        if self._value is None:
            self.fate.computed = True
            with torch._C.DisableTorchFunction():  # an active mode would defer it again
                self._value = self.function(self.x)
        return self._value

    def __getattr__(self, name: str) -> Any:
        """Attributes of the activation."""
        if name.startswith("_"):  # copy and pickle probe such names; they must not compute the activation
            raise AttributeError(name)
        return getattr(self.value, name)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func`` on the activation."""
        del types
        args, kwargs = computed((args, kwargs or {}))
        return func(*args, **kwargs)


def computed(values: Any) -> Any:
    """Nested values, with every deferred activation computed."""
    return tree_map(lambda value: value.value if isinstance(value, Waiting) else value, values)


class PoolFirst(TorchFunctionMode):
    """While active, defers the activations in ``moved`` until after their max-pooling, and speeds up 2 x 2 pooling.

    Attention runs on the rows of all examples at once: ``vmap`` would miss the library's fused kernels.

    A pass is valid only if it is ``sound`` at its end: uses of a placeholder outside the functions of torch are visible
    neither to this mode nor to autograd. If rounding gives two different inputs of a window the same activation, the
    larger input gets the gradient instead of the first.

    Args:
        moved: Activations to defer, by their place (from 0) in the forward pass; None for all.

    Attributes:
        replaced: Whether any call was replaced by a faster one.
    """

    def __init__(self, moved: frozenset[int] | None = frozenset()) -> None:
        super().__init__()
        self.moved, self.replaced = moved, False
        self._count = 0
        self._fates: list[Fate] = []
        self._waiting: Waiting | None = None

    @property
    def sound(self) -> bool:
        """Whether every deferred activation was used by a max-pooling and by nothing else."""
        return all(fate.only_pooled for fate in self._fates)

    @property
    def followed(self) -> frozenset[int]:
        """Places of the activations that were used by a max-pooling and by nothing else."""
        return frozenset(fate.place for fate in self._fates if fate.only_pooled)

    @property
    def left_behind(self) -> bool:
        """Whether the network, or a hook on it, still holds a placeholder."""
        return any(fate.kept() is not None for fate in self._fates)

    def __exit__(self, *exception: Any) -> None:
        """Drop the pending placeholder, so that only the network's own references count."""
        self._waiting = None
        super().__exit__(*exception)  # type: ignore[no-untyped-call]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Defer, swap or replace a call; pass on all others."""
        kwargs = kwargs or {}
        # The common case first: this runs for every call of the network.
        if self._waiting is None and func not in _TREATED and Waiting not in types:
            return func(*args, **kwargs)
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            if func in _POOLS and args and args[0] is waiting and not _with_indices(args, kwargs):
                waiting.fate.pooled = True
                return waiting.function(self._pooled(func, (waiting.x, *args[1:]), kwargs))
            _ = waiting.value  # now: the call that follows may write to its input
        if Waiting in types:
            args, kwargs = computed((args, kwargs))
        if func in _RISING and _alone(args, kwargs):
            place, self._count = self._count, self._count + 1
            if self.moved is None or place in self.moved:
                self._fates.append(Fate(place))
                self._waiting = Waiting(func, args[0], self._fates[-1])
                return self._waiting
        if func is F.multi_head_attention_forward:
            with _inner_attention_by_rows():
                return func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            self.replaced = True
            return attention_by_rows(*args, **kwargs)
        return self._pooled(func, args, kwargs) if func in _POOLS else func(*args, **kwargs)

    def _pooled(self, func: Any, args: Any, kwargs: Any) -> Any:
        stride = pooling_stride(*args, **kwargs) if func in (F.max_pool2d, torch.max_pool2d) else None
        if stride is None:
            return func(*args, **kwargs)
        self.replaced = True
        return on_rows(lambda x: pool2x2(x, stride), args[0] if args else kwargs["input"])


_INNER = threading.RLock()


@contextmanager
def _inner_attention_by_rows() -> Iterator[None]:
    """Make ``F.multi_head_attention_forward`` use ``attention_by_rows``.

    It looks up ``F.scaled_dot_product_attention`` by name, past every function mode, so the name itself is replaced for
    the duration of the call. Under ``vmap``, fused attention on a GPU would not save what its backward pass needs: it
    checks whether the tensor of one example requires a gradient, and only the tensor of all examples knows.
    """
    with _INNER:
        original = F.scaled_dot_product_attention

        def by_rows(*args: Any, **kwargs: Any) -> Tensor:
            F.scaled_dot_product_attention = original
            try:
                return attention_by_rows(*args, **kwargs)
            finally:
                F.scaled_dot_product_attention = by_rows

        F.scaled_dot_product_attention = by_rows
        try:
            yield
        finally:
            F.scaled_dot_product_attention = original


def pooling_of(forward: Callable[[], object]) -> tuple[bool, frozenset[int]]:
    """Whether this mode makes a forward pass faster, and which of its activations can be deferred."""
    trial = PoolFirst(None)
    try:
        with torch.no_grad(), trial:
            forward()
    except Exception:  # something needs a real tensor: nothing is deferred
        return True, frozenset()
    followed = trial.followed
    if trial.left_behind:  # the network keeps a placeholder: a pass without deferring overwrites it with a tensor
        with torch.no_grad():
            forward()
    return trial.replaced or bool(followed), followed


def _alone(args: Any, kwargs: Any) -> bool:
    """Whether a call has one tensor argument and is not in place."""
    flags = [*args[1:], *kwargs.values()]
    return len(args) >= 1 and isinstance(args[0], Tensor) and all(value is False for value in flags)


def _with_indices(args: Any, kwargs: Any) -> bool:
    return bool(kwargs.get("return_indices")) or any(value is True for value in args[5:])
