"""Whether a network keeps the rows of its examples in place, whatever they hold."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from monitors.errors import UnsupportedModuleError

_aten = torch.ops.aten

#: Operations whose number of rows depends on what their input holds.
_BY_CONTENT = {
    *(_aten.nonzero, _aten.masked_select, _aten._unique, _aten._unique2, _aten.unique_dim),
    *(_aten.unique_consecutive, _aten._pack_padded_sequence),
}

#: Operations that give an order of rows, and the position of their dimension among the arguments.
_ORDERS = {_aten.sort: -1, _aten.argsort: -1, _aten.topk: -1, _aten.msort: 0}


class RowOrder(TorchDispatchMode):
    """While active, refuses operations that pick or sort rows by what they hold.

    Behind them row b of a layer need not belong to example b, and trial passes on equal rows cannot tell.

    Args:
        batch_size: Number of examples of the pass.

    Raises:
        UnsupportedModuleError: Such an operation is met; it is named.

    Example:
        >>> with RowOrder(2):
        ...     torch.zeros(2, 3)[torch.tensor([True, False])]
        Traceback (most recent call last):
        monitors.errors.UnsupportedModuleError: its forward pass picks rows by what they hold (index), so that which \
example a row belongs to is not known
    """

    def __init__(self, batch_size: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.batch_size = batch_size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if packet in _BY_CONTENT or (packet is _aten.index and _by_mask(args[1])) or _repeats(func):
            raise _refusal("picks", packet)
        if packet in _ORDERS and self._sorts_examples(packet, args, kwargs):
            raise _refusal("sorts", packet)
        if packet is _aten.randperm and args[0] == self.batch_size:
            raise _refusal("shuffles", packet)
        return func(*args, **kwargs)

    def _sorts_examples(self, packet: Any, args: Any, kwargs: Any) -> bool:
        x: Tensor = args[0]
        numbers = [value for value in args[1:] if isinstance(value, int) and not isinstance(value, bool)]
        if packet is _aten.topk:
            numbers = numbers[1:]
        dim = kwargs.get("dim", numbers[0] if numbers else _ORDERS[packet])
        return x.dim() > 0 and x.shape[0] == self.batch_size and dim % x.dim() == 0


def _by_mask(indices: Any) -> bool:
    """Whether a mask picks among the rows; one of the later dimensions picks the same of each row."""
    first = indices[0]
    return isinstance(first, Tensor) and first.dtype in (torch.bool, torch.uint8)


def _repeats(func: Any) -> bool:
    return func in (_aten.repeat_interleave.Tensor, _aten.repeat_interleave.self_Tensor)


def _refusal(does: str, packet: Any) -> UnsupportedModuleError:
    return UnsupportedModuleError(
        f"its forward pass {does} rows by what they hold ({packet.__name__}), so that which example a row belongs to "
        "is not known"
    )
