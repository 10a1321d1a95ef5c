"""A forward pass in which each module sees one example, while its kernels run on the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.func import vmap

from mechanisms.engines.batch import first_tensor, map_tensors
from mechanisms.engines.isolation import functions as _functions  # noqa: F401  (importing it installs a guard)
from mechanisms.engines.isolation.guards import NO_HOOKS, SIGNS, PassGuard, guarded_batch
from mechanisms.engines.isolation.shared_draws import restart_shared_draws
from mechanisms.engines.isolation.substitutes import Substitutes
from monitors.errors import UnsupportedModuleError

_functorch: Any = torch._C._functorch
_get_unwrapped: Any = _functorch.get_unwrapped

#: Maximum number of characters of PyTorch's reason in a message.
_LONGEST_REASON = 300

#: Level of the outermost transform of ``torch.func``.
_OUTERMOST = 1


def isolated(function: Callable[..., Tensor], *nests: Any) -> Tensor:
    """Apply ``function`` to each example alone; returns shape (B, *shape of one result).

    The function runs once, under ``torch.func.vmap`` with shared weights: each tensor that it sees holds one example,
    as a batch of one. It cannot express an operation over the examples of the batch, and Python control flow that
    depends on an example (``if x.max() > 1``, ``.item()``, a mask that selects rows) is an error. Each example draws
    its own random numbers. Autograd works outside the pass, on the tensors of the whole batch.

    Args:
        function: Function of one example; takes one argument per nest, of the same structure.
        nests: Nested tensors whose first dimension counts the same B examples.

    Raises:
        UnsupportedModuleError: The function cannot be vectorised, for PyTorch's own reason, or it uses an autograd
            function with a custom vmap rule.

    Example:
        >>> isolated(lambda x: (x / x.max()).sum(), torch.tensor([[1.0, 1.0], [1.0, 3.0]]))
        tensor([2.0000, 1.3333])
    """

    def of_one(*examples: Any) -> Tensor:
        return function(*(map_tensors(lambda value: value.unsqueeze(0), example) for example in examples))

    with examples_only(*nests), disable_saved_tensors_hooks(NO_HOOKS):
        found: Tensor = vmap(of_one, in_dims=0, randomness="different")(*nests)
    return found


@contextmanager
def examples_only(*nests: Any) -> Iterator[None]:
    """Surround a vectorised call: user code never sees the whole batch, and PyTorch's refusals are explained.

    Args:
        nests: Nested tensors on the device of the call; none for the CPU.

    Raises:
        UnsupportedModuleError: The call needs access to more than one example, or to values.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the fast path has no derivative
    try:
        with PassGuard(first_tensor(nests[0]).device if nests else None) as guard, Substitutes():
            guard.require_plain(nests)
            restart_shared_draws()
            yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        if not any(sign in reason for sign in SIGNS):
            raise  # an error of the network or the loss itself
        raise UnsupportedModuleError(
            f"the examples of a batch cannot be isolated: {reason[:_LONGEST_REASON]}"
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def rows_of(value: Any) -> Tensor | None:
    """The tensor of all examples behind ``value``, shape (B, *value.shape); None if the examples share it.

    Call this inside ``isolated``, and use the result only inside ``on_batch``.

    Raises:
        UnsupportedModuleError: The network applies a transform of ``torch.func`` itself.
    """
    if not isinstance(value, Tensor) or not _functorch.is_functorch_wrapped_tensor(value):
        return None
    if not _functorch.is_batchedtensor(value) or _functorch.maybe_get_level(value) != _OUTERMOST:
        raise UnsupportedModuleError("a layer is called inside a torch.func transform that the network applies")
    rows: Tensor = _get_unwrapped(value)
    dim = _functorch.maybe_get_bdim(value)
    if dim:
        with on_batch():
            rows = rows.movedim(dim, 0)
    return rows


def example_of(rows: Tensor) -> Tensor:
    """The tensor of one example that represents ``rows``, shape (B, ...): the inverse of ``rows_of``."""
    found: Tensor = _functorch._add_batch_dim(rows, 0, _OUTERMOST)
    return found


@contextmanager
def on_batch() -> Iterator[None]:
    """Inside ``isolated``, work on the tensors of the whole batch: for layers that treat rows independently.

    Function modes do not see that work, and a mode below vmap is refused.
    """
    with temporarily_pop_interpreter_stack(), guarded_batch():
        yield
