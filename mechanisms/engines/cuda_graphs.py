"""CUDA graphs: kernels that are recorded once, and launched together and without Python from then on.

References:
    Gray 2019, "Getting Started with CUDA Graphs" (NVIDIA).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

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
