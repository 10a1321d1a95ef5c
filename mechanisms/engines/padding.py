"""Rows of embedding tables that never get a gradient: those of ``padding_idx``."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mechanisms.engines.batch import Batch, call_network
from mechanisms.engines.losses import ExampleLosses, LossFunction
from mechanisms.engines.parameters import trainable_parameters
from mechanisms.engines.probing import preserve_state

_ATEN: Any = torch.ops.aten

#: Look-ups whose derivative is zero in the row of ``padding_idx``.
_LOOK_UPS = (_ATEN.embedding, _ATEN._embedding_bag, _ATEN._embedding_bag_forward_only)

#: Operators that pass no gradient to the table.
_DETACHED = (_ATEN.detach,)


def padding_rows(network: nn.Module, loss_fn: LossFunction, example: Batch) -> dict[str, list[int]]:
    """Rows of trainable tables whose gradient is zero for any data, by name of the parameter.

    The derivative of ``torch.nn.functional.embedding`` and ``embedding_bag`` is zero in the row ``padding_idx``. A
    table that only such look-ups use, all with the same ``padding_idx``, therefore has a gradient of exactly zero in
    that row, for all examples and weights. A table with any other use, such as a tied output layer, is not listed.

    Private training sets these rows of its noisy gradient to zero. That costs no privacy: the rows are fixed by the
    code of the network, and anything computed from a private release without further access to the data is as private
    as the release (post-processing).

    Args:
        network: Run once; its state is preserved. Its operators must not depend on the values of the example, which is
            certain for all engines but ``loop``.
        loss_fn: The user's loss, which may also use parameters.
        example: One example.

    Example:
        >>> example = Batch(torch.tensor([[1, 0]]), torch.zeros(1, 2, 3))
        >>> padding_rows(nn.Sequential(nn.Embedding(5, 3, padding_idx=0)), nn.MSELoss(), example)
        {'0.weight': [0]}
        >>> padding_rows(nn.Sequential(nn.Embedding(5, 3)), nn.MSELoss(), example)
        {}
    """
    uses = _Uses(trainable_parameters(network))
    with suppress(Exception), preserve_state(network, loss_fn), torch.enable_grad(), uses:
        ExampleLosses(loss_fn)(call_network(network, example.x), example.y)
        return uses.rows
    return {}  # the network cannot run under a dispatch mode: its rows get noise like all others


class _Uses(TorchDispatchMode):
    """Records how parameters are used while it is active.

    Attributes:
        found: For each name, the rows that its look-ups leave out; None stands for a use that leaves out nothing.
    """

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names = {id(value): name for name, value in parameters.items()}
        self.found: dict[str, dict[int | None, None]] = {}

    @property
    def rows(self) -> dict[str, list[int]]:
        """The rows that all uses of a parameter leave out, by name."""
        return {name: [row] for name, (row, *others) in self.found.items() if row is not None and not others}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket not in _DETACHED:
            for value in _tensors((*args, *(kwargs or {}).values())):
                name = self._names.get(id(value))
                if name is not None:
                    row = _left_out(func, value, args, kwargs or {})
                    self.found.setdefault(name, {})[row] = None
        return func(*args, **(kwargs or {}))


def _left_out(func: Any, table: Tensor, args: Any, kwargs: Any) -> int | None:
    if func.overloadpacket not in _LOOK_UPS or args[0] is not table:
        return None
    given = {argument.name: argument.default_value for argument in func._schema.arguments}
    given.update(zip(given, args, strict=False))
    given.update(kwargs)
    row = int(given["padding_idx"])
    return row if row >= 0 else None


def _tensors(values: Any) -> list[Tensor]:
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += _tensors(value)
    return found
