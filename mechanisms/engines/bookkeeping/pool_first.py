"""Activations moved behind the max-pooling that follows them: the same numbers from a quarter of the work."""

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

#: Functions that never fall, entry by entry: their maximum is their value at the maximum.
_RISING = (
    *(torch.relu, Tensor.relu, F.relu),
    *(torch.tanh, Tensor.tanh),
    *(torch.sigmoid, Tensor.sigmoid),
    *(torch.selu, F.selu),
)

#: All functions that are treated in a way of their own.
_TREATED = frozenset({*_POOLS, *_RISING, F.multi_head_attention_forward, F.scaled_dot_product_attention})


@dataclass(slots=True)
class Fate:
    """What became of an activation that waited.

    Args:
        place: Its place among the activations of the pass.
        pooled: Whether a max-pooling came first.
        computed: Whether it was asked for itself.
        kept: Whoever still has it.
    """

    place: int
    pooled: bool = False
    computed: bool = False
    kept: Callable[[], Waiting | None] = lambda: None

    @property
    def only_pooled(self) -> bool:
        """Whether a max-pooling was all that was done with it, and nobody has it any more."""
        return self.pooled and not self.computed and self.kept() is None


class Waiting:
    """What a network holds in place of an activation that is not computed yet; no tensor, so that nothing misreads it.

    Functions of torch that are given one, operators, and whoever reads one of its attributes get ``function(x)``.

    Args:
        function: Of one tensor.
        x: The tensor.
        fate: Told what is done.
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
            with torch._C.DisableTorchFunction():  # an active mode would make it wait once more
                self._value = self.function(self.x)
        return self._value

    def __getattr__(self, name: str) -> Any:
        """Attributes of the activation."""
        if name.startswith("_"):  # what copies and pickles ask for is not the activation's
            raise AttributeError(name)
        return getattr(self.value, name)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func`` on the activation."""
        del types
        args, kwargs = computed((args, kwargs or {}))
        return func(*args, **kwargs)


def computed(values: Any) -> Any:
    """A nest of values with every activation that waits computed."""
    return tree_map(lambda value: value.value if isinstance(value, Waiting) else value, values)


class PoolFirst(TorchFunctionMode):
    """While active, activations named in ``moved`` wait for the max-pooling that follows, and 2 x 2 pooling is fast.

    Attention runs on the rows of all examples at once, for which the library has kernels.

    A pass counts only if it is ``sound`` in the end: autograd does not see what is done with a waiting activation
    outside of the functions of torch. Where rounding gives two different inputs of a window the same activation, the
    larger input gets the gradient, not the first.

    Args:
        moved: Which activations wait, by their place (from 0) among those of the forward pass; None for all.

    Attributes:
        replaced: Whether anything was done in a faster way.
    """

    def __init__(self, moved: frozenset[int] | None = frozenset()) -> None:
        super().__init__()
        self.moved, self.replaced = moved, False
        self._count = 0
        self._fates: list[Fate] = []
        self._waiting: Waiting | None = None

    @property
    def sound(self) -> bool:
        """Whether each activation that waited has met a max-pooling and nothing else."""
        return all(fate.only_pooled for fate in self._fates)

    @property
    def followed(self) -> frozenset[int]:
        """Places of the activations that met a max-pooling and nothing else."""
        return frozenset(fate.place for fate in self._fates if fate.only_pooled)

    @property
    def left_behind(self) -> bool:
        """Whether the network, or a hook on it, still holds something that waits."""
        return any(fate.kept() is not None for fate in self._fates)

    def __exit__(self, *exception: Any) -> None:
        """Nothing waits any longer."""
        self._waiting = None
        super().__exit__(*exception)  # type: ignore[no-untyped-call]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Move what is to be moved, replace what has a faster form, pass on all other calls."""
        kwargs = kwargs or {}
        if self._waiting is None and func not in _TREATED and Waiting not in types:
            return func(*args, **kwargs)
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            if func in _POOLS and args and args[0] is waiting and not _with_indices(args, kwargs):
                waiting.fate.pooled = True
                return waiting.function(self._pooled(func, (waiting.x, *args[1:]), kwargs))
            _ = waiting.value  # now, before its input can be written to
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
    """The function of a whole attention layer looks the attention itself up by name, past every mode.

    Vectorised, fused attention on a GPU would not keep what its backward pass needs: it asks the tensor of one example
    whether it requires a gradient, and only the tensor of all examples knows.
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
    """Whether this mode makes a forward pass faster, and which of its activations can wait."""
    trial = PoolFirst(None)
    try:
        with torch.no_grad(), trial:
            forward()
    except Exception:  # something needs a real tensor: everything is done in the order that the network says
        return True, frozenset()
    followed = trial.followed
    if trial.left_behind:  # put a tensor in its place
        with torch.no_grad():
            forward()
    return trial.replaced or bool(followed), followed


def _alone(args: Any, kwargs: Any) -> bool:
    """Whether a call is of one tensor, and not in place."""
    flags = [*args[1:], *kwargs.values()]
    return len(args) >= 1 and isinstance(args[0], Tensor) and all(value is False for value in flags)


def _with_indices(args: Any, kwargs: Any) -> bool:
    return bool(kwargs.get("return_indices")) or any(value is True for value in args[5:])
