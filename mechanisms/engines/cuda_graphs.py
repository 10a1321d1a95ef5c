"""CUDA graphs: kernels that are recorded once, and launched together and without Python from then on.

References:
    Gray 2019, "Getting Started with CUDA Graphs" (NVIDIA).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: Runs a function once while recording its kernels, and returns the function that replays them.
Record = Callable[[Callable[[], None]], Callable[[], None]]


def as_cuda_graphs() -> Record:
    """Records functions as CUDA graphs with a common pool of memory."""
    pool = torch.cuda.graph_pool_handle()

    def record(function: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as those of a data loader, may use the GPU meanwhile.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            function()
        return graph.replay

    return record


def place_of(value: Tensor) -> tuple[object, ...]:
    """The memory of a tensor, and its layout there."""
    return value.data_ptr(), value.shape, value.stride(), value.dtype


def equal_but_rounding(found: Tensor, expected: Tensor, rounding: float) -> bool:
    """Whether two tensors are equal up to a relative error of their norms; what is not finite must be so in both.

    Example:
        >>> one = torch.ones(2)
        >>> equal_but_rounding(1.001 * one, one, 0.01), equal_but_rounding(one / 0, one, 0.01)
        (True, False)
    """
    finite = found.isfinite()
    if not torch.equal(finite, expected.isfinite()):
        return False
    found, expected = (torch.where(finite, value, 0.0) for value in (found, expected))
    return float((found - expected).norm()) <= rounding * float(expected.norm())


def why_it_failed(error: Exception) -> str:
    """Why there is no recording, in words."""
    lines = str(error).strip().splitlines()
    return f"recording failed ({type(error).__name__}: {lines[0] if lines else ''})"
