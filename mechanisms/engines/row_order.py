"""Whether a network keeps the rows of its examples in place, whatever they hold."""

from __future__ import annotations

from collections.abc import Sequence
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
    """While active, notes operations that may pick or sort rows by what they hold.

    Behind them row b of a layer need not belong to example b, and trial passes on equal rows cannot tell. A constant
    may have the size of a batch by chance, but not of batches of several sizes: ``refuse`` takes passes of several.

    Args:
        batch_size: Number of examples of the pass.

    Attributes:
        found: What an operation does, its name, and the rows per example that it goes over.

    Example:
        >>> with RowOrder(2) as order:
        ...     _ = torch.zeros(2, 3)[torch.tensor([True, False])]
        >>> order.found
        {('picks', 'index', 1)}
    """

    def __init__(self, batch_size: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.batch_size = batch_size
        self.found: set[tuple[str, str, int]] = set()

    @staticmethod
    def refuse(passes: Sequence[RowOrder]) -> None:
        """Raise where all passes, of different sizes, have met the same operation.

        Raises:
            UnsupportedModuleError: It is named.
        """
        for does, name, _ in sorted(set.intersection(*(order.found for order in passes))):
            raise UnsupportedModuleError(
                f"its forward pass {does} rows by what they hold ({name}), so that which example a row belongs to is "
                "not known"
            )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if packet in _BY_CONTENT or (packet is _aten.index and _by_mask(args[1])) or _repeats(func):
            self._note("picks", packet, (args[1][0] if packet is _aten.index else args[0]).shape)
        elif packet in _ORDERS:
            self._note("sorts", packet, _sorted_size(packet, args, kwargs))
        elif packet is _aten.randperm:
            self._note("shuffles", packet, args[:1])
        return func(*args, **kwargs)

    def _note(self, does: str, packet: Any, sizes: Sequence[int]) -> None:
        for size in sizes:
            if size and size % self.batch_size == 0:
                self.found.add((does, packet.__name__, size // self.batch_size))


def _sorted_size(packet: Any, args: Any, kwargs: Any) -> Sequence[int]:
    """Size of the dimension that is put in order; nothing for a single number."""
    x: Tensor = args[0]
    numbers = [value for value in args[1:] if isinstance(value, int) and not isinstance(value, bool)]
    if packet is _aten.topk:
        numbers = numbers[1:]
    dim = kwargs.get("dim", numbers[0] if numbers else _ORDERS[packet])
    return [x.shape[dim]] if x.dim() else []


def _by_mask(indices: Any) -> bool:
    """Whether a mask picks among the rows; one of the later dimensions picks the same of each row."""
    first = indices[0]
    return isinstance(first, Tensor) and first.dtype in (torch.bool, torch.uint8)


def _repeats(func: Any) -> bool:
    return func in (_aten.repeat_interleave.Tensor, _aten.repeat_interleave.self_Tensor)
