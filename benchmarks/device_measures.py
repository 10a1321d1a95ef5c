"""Cost of a step on its device: milliseconds, peak memory, launched kernels and waits of the host.

On a GPU, milliseconds are measured between two CUDA events and include all work launched between them. On the CPU they
are wall time.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch._C._autograd import DeviceType

Step = Callable[[], object]

#: Calls of the CUDA runtime in which the host waits for the device.
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy")

#: Number of kernels that are listed by name, the slowest first.
LISTED = 8


def on_gpu(device: str) -> bool:
    return torch.device(device).type == "cuda"


def finish(device: str) -> None:
    """Wait until the device has finished its work."""
    if on_gpu(device):
        torch.cuda.synchronize()


def milliseconds(step: Step, count: int, device: str) -> float:
    """Milliseconds per step over ``count`` steps."""
    if not on_gpu(device):
        begun = time.perf_counter()
        for _ in range(count):
            step()
        return 1e3 * (time.perf_counter() - begun) / count
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for _ in range(count):
        step()
    end.record()
    end.synchronize()
    elapsed: float = begin.elapsed_time(end) / count
    return elapsed


def steps_for(seconds: float, milliseconds_each: float, most: int = 300) -> int:
    """Number of steps that take about ``seconds``."""
    return max(1, min(most, int(1e3 * seconds / max(milliseconds_each, 1e-3))))


def held_bytes(device: str) -> tuple[int, int]:
    """Bytes that are allocated, and bytes that are reserved (for recorded graphs, for example)."""
    if not on_gpu(device):
        return 0, 0
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated(), torch.cuda.memory_reserved()


def peak_bytes_of(step: Step, device: str, before: tuple[int, int]) -> int | None:
    """Peak bytes on the GPU while ``step`` runs, beyond what was held before it was made; None on the CPU.

    Tensors inside a recorded graph are not allocated in a replay, but the memory of the graph remains reserved.
    """
    if not on_gpu(device):
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    allocated, reserved = before
    return max(torch.cuda.max_memory_allocated() - allocated, torch.cuda.memory_reserved() - reserved)


@dataclass(frozen=True)
class Launches:
    """Counts per step.

    Args:
        kernels: Kernels, copies and fills that the device ran.
        waits: Calls in which the host waited for the device.
        busy_ms: Milliseconds in which the device was busy.
        host_ms: CPU milliseconds, under the profiler.
        longest: The slowest kernels, with their milliseconds.
    """

    kernels: float
    waits: float
    busy_ms: float
    host_ms: float
    longest: list[tuple[str, float]]


def launches(step: Step, device: str, count: int = 2) -> Launches | None:
    """The work of the device in a step, from torch's profiler; None on the CPU."""
    if not on_gpu(device):
        return None
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    begun = time.process_time()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        for _ in range(count):
            step()
        torch.cuda.synchronize()
    host = 1e3 * (time.process_time() - begun) / count
    kernels, waits, busy = 0, 0, defaultdict[str, float](float)
    for event in _raw_events(profiled):
        if event.device_type() == DeviceType.CUDA:
            if "#" in event.name():  # an annotation such as Optimizer.step#SGD.step, not a kernel
                continue
            kernels += 1
            busy[event.name()] += event.duration_ns() / 1e6 / count
        elif event.name() in WAITS:
            waits += 1
    longest = [(name[:90], took) for name, took in sorted(busy.items(), key=lambda item: -item[1])[:LISTED]]
    return Launches(kernels / count, waits / count, sum(busy.values()), host, longest)


def _raw_events(profiled: Any) -> Any:
    """Kineto's list of events; building torch's event tree takes many seconds for thousands of launches."""
    return profiled.profiler.kineto_results.events()
