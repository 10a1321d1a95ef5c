"""CUDA graphs: kernels that are recorded once, and launched together and without Python from then on.

References:
    Gray 2019, "Getting Started with CUDA Graphs" (NVIDIA).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

#: Runs a function once while recording its kernels, and returns the function that replays them.
Record = Callable[[Callable[[], None]], Callable[[], None]]


#: What torch says of an operation for which the host waits.
_WAITS = "called a synchronizing CUDA operation"


def as_cuda_graphs(device: torch.device) -> Record:
    """Records functions as CUDA graphs of a device, with a common pool of memory.

    A function runs once before it is recorded: what cannot be recorded would leave the memory pools of torch unusable
    if it were found during the recording. It must give the same if it runs twice.

    Args:
        device: A CUDA device.

    Raises:
        RuntimeError: The function waits for the device, or copies to it from memory of the host.
    """
    pool, beside = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)

    def record(function: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        # If the recording fails, torch does not leave its stream; the outer context does.
        with torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream(device)):
            with unwaiting():
                function()
            # Other threads, such as those of a data loader, may use the GPU meanwhile.
            with torch.cuda.graph(graph, pool=pool, stream=beside, capture_error_mode="thread_local"):
                function()
        return graph.replay

    return record


@contextmanager
def unwaiting() -> Iterator[None]:
    """Refuse operations inside for which the host waits for a GPU.

    Raises:
        RuntimeError: After the block: there was one.
    """
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")  # as an error, it would reach the other threads of the user
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)
    if any(_WAITS in str(warning.message) for warning in caught):
        raise RuntimeError("the host waits for the GPU, or copies from memory of its own")


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
    """The reason why a recording failed, in words."""
    lines = str(error).strip().splitlines()
    return f"recording failed ({type(error).__name__}: {lines[0] if lines else ''})"
