"""Triton kernel that clears rows; see ``row_clearing``.

Importing this module imports Triton. To run the kernel on the CPU in tests, set ``TRITON_INTERPRET=1`` before importing
Triton.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

_PROGRAM = 1024
#: Arguments whose values must not trigger a recompilation, because a captured graph cannot compile.
_VARYING = ("parts", "by_row", "by_part", "width")


@triton.jit(do_not_specialize=_VARYING)
def _clear_kernel(rows, keep, parts, by_row, by_part, width, PROGRAM: tl.constexpr):
    program = tl.program_id(0).to(tl.int64)
    row = program // parts
    part = program % parts
    if tl.load(keep + row) == 0:
        first = rows + row * by_row + part * by_part
        for start in range(0, width, PROGRAM):
            place = start + tl.arange(0, PROGRAM)
            tl.store(first + place, tl.zeros([PROGRAM], rows.dtype.element_ty), place < width)


def clear(rows: Tensor, keep: Tensor) -> None:
    """Set the rows of ``rows``, shape (B, N) or (B, S, N), to zero where ``keep``, shape (B,), is False.

    The last dimension of ``rows`` is contiguous.
    """
    table = rows if rows.dim() == 3 else rows.unsqueeze(1)
    if not table.numel():
        return
    by_row, by_part, _ = table.stride()
    with _on(rows):
        # Along one dimension, since the others of a grid have at most 65,535 programs.
        _clear_kernel[(table.shape[0] * table.shape[1],)](
            rows, keep.view(torch.int8), table.shape[1], by_row, by_part, table.shape[2], _PROGRAM
        )


def _on(tensor: Tensor) -> AbstractContextManager[object]:
    """Make the tensor's device current, because Triton launches on the current device."""
    return torch.cuda.device(tensor.device) if tensor.device.type == "cuda" else nullcontext()
