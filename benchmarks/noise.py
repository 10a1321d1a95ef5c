"""Secure noise compared with insecure and with simpler generators: millions of float32 normal numbers per second.

    PYTHONPATH=. python benchmarks/noise.py [--rounds 30] [--threads 1 2]
    PYTHONPATH=. python benchmarks/noise.py --device cuda

Sizes are those of LeNet5 (61,684 parameters), a million, and ResNet18 (11.2 million). All generators fill existing
memory, as the noise of a step does. ``torch normal_`` is the Mersenne Twister, which must not be used for privacy;
``os.urandom`` is the system's generator with the same transform; ``float64`` is the double precision of the secure
generator. Rounds are interleaved; the table shows best and median. Writes ``benchmarks/results/noise.md``.

On a GPU (sizes of LeNet5, ResNet18 and GPT-2 small), secure noise added in place is compared with ``torch.randn`` added
in place and with ``torch.randn`` alone. CUDA events time single calls, including launches, and replays of a CUDA graph,
in which only the time of the device counts. Writes ``benchmarks/results/noise_cuda.md``.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import cast

import torch

from mechanisms.box_muller import OpenStream, add_normal
from mechanisms.rng import SecureGenerator

SIZES = (61_684, 1_000_000, 11_200_000)
DEVICE_SIZES = (61_684, 11_200_000, 124_000_000)
RESULTS = Path(__file__).parent / "results"
#: Calls in one captured graph, enough to make its launch negligible.
CAPTURED = 10


class SystemStream:
    """Replaces the cipher with random bytes of the operating system, whatever the counter."""

    def update_into(self, data: memoryview, buffer: bytearray) -> None:
        """Write random bytes into ``buffer``, as many as ``data`` has."""
        buffer[: len(data)] = os.urandom(len(data))


def ways(size: int) -> dict[str, Callable[[], object]]:
    generator, single, double = SecureGenerator(), torch.zeros(size), torch.zeros(size, dtype=torch.float64)
    numbers, system = single.numpy(), cast(OpenStream, lambda _: SystemStream())
    return {
        "dpmodel float32": lambda: generator.add_normal_(single, 1.3),
        "torch normal_ float32": lambda: single.normal_(0.0, 1.3),
        "os.urandom float32": lambda: add_normal(numbers, 1.3, system, torch.get_num_threads()),
        "dpmodel float64": lambda: generator.add_normal_(double, 1.3),
    }


def seconds(work: Callable[[], object], calls: int) -> float:
    begun = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - begun) / calls


def measure(size: int, threads: int, rounds: int) -> list[str]:
    torch.set_num_threads(threads)
    table = ways(size)
    calls = max(1, 1_000_000 // size)
    times: dict[str, list[float]] = {name: [] for name in table}
    for _ in range(rounds):
        for name, work in table.items():
            times[name].append(seconds(work, calls))
    return [f"| {name} | {size:,} | {threads} | {summary(size, found)} |" for name, found in times.items()]


def summary(size: int, found: list[float]) -> str:
    best, median = min(found), statistics.median(found)
    return f"{size / best / 1e6:.0f} | {size / median / 1e6:.0f} | {best * 1e3:.2f} | {median * 1e3:.2f}"


def single_numbers(rounds: int) -> list[str]:
    generator = SecureGenerator()
    times = [seconds(generator.scalar_normal, 1000) for _ in range(rounds)]
    return [
        f"One number (`scalar_normal`): best {min(times) * 1e6:.0f} us, median {statistics.median(times) * 1e6:.0f} us."
    ]


def device_ways(size: int, device: torch.device) -> dict[str, Callable[[], object]]:
    generator, target = SecureGenerator(), torch.zeros(size, device=device)
    return {
        "dpmodel, added": lambda: generator.add_normal_(target, 1.3),
        "torch.randn, added": lambda: target.add_(torch.randn(size, device=device), alpha=1.3),
        "torch.randn": lambda: torch.randn(size, out=target),
    }


def event_milliseconds(work: Callable[[], object], device: torch.device) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    begin.record()
    work()
    end.record()
    end.synchronize()
    elapsed: float = begin.elapsed_time(end)
    return elapsed


def graph_of(work: Callable[[], object], device: torch.device) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize(device)
    with torch.cuda.graph(graph):
        for _ in range(CAPTURED):
            work()
    return graph


def noise_rows(device: torch.device | str = "cuda", rounds: int = 30) -> list[str]:
    """Table rows: generator, size, and median ms of a call and of a replay with ratios to ``torch.randn, added``."""
    device = torch.device(device)
    found = []
    with torch.cuda.device(device):
        for size in DEVICE_SIZES:
            table = device_ways(size, device)
            for work in table.values():
                work()
            graphs = {name: graph_of(work, device) for name, work in table.items()}
            calls: dict[str, list[float]] = {name: [] for name in table}
            replays: dict[str, list[float]] = {name: [] for name in table}
            for _ in range(rounds):
                for name, work in table.items():
                    calls[name].append(event_milliseconds(work, device))
                    replays[name].append(event_milliseconds(graphs[name].replay, device) / CAPTURED)
            call, replay = ({name: statistics.median(of[name]) for name in table} for of in (calls, replays))
            plain = "torch.randn, added"
            found += [
                f"| {name} | {size:,} | {call[name]:.4f} | {call[name] / call[plain]:.2f} | {replay[name]:.4f} | "
                f"{replay[name] / replay[plain]:.2f} |"
                for name in table
            ]
            del graphs, table
    return found


def device_report(device: str, rounds: int) -> str:
    from mechanisms.chacha.backends import backend_for

    rows = noise_rows(device, rounds)
    where = torch.device("cuda", torch.device(device).index or 0)
    backend = backend_for(where)[0]
    triton = f", triton {importlib.metadata.version('triton')}" if backend == "triton" else ""
    lines = [
        "# Secure noise on a GPU",
        "",
        f"Written by `PYTHONPATH=. python benchmarks/noise.py --device {device} --rounds {rounds}`, {date.today()}; "
        f"{torch.cuda.get_device_name(where)}, Python {platform.python_version()}, torch {torch.__version__}{triton}; "
        f"kernels by {backend}. Medians; the ratios are to `torch.randn, added`.",
        "",
        "| what | numbers | ms a call | ratio | ms in a graph | ratio |",
        "|---|---:|---:|---:|---:|---:|",
        *rows,
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    arguments = parser.parse_args()
    if arguments.device != "cpu":
        write("noise_cuda.md", device_report(arguments.device, arguments.rounds))
        return
    begin_load = os.getloadavg()[0]
    rows = [row for threads in arguments.threads for size in SIZES for row in measure(size, threads, arguments.rounds)]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "numpy", "cryptography"))
    lines = [
        "# Secure noise: numbers per second",
        "",
        f"Written by `PYTHONPATH=. python benchmarks/noise.py --rounds {arguments.rounds}`, {date.today()}; "
        f"{platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}, {versions}; "
        f"load average {begin_load:.1f} before the run.",
        "",
        "| what | numbers | threads | best M/s | median M/s | best ms | median ms |",
        "|---|---:|---:|---:|---:|---:|---:|",
        *rows,
        "",
        *single_numbers(arguments.rounds),
    ]
    write("noise.md", "\n".join(lines))


def write(name: str, report: str) -> None:
    (RESULTS / name).write_text(report + "\n")
    print(report)


if __name__ == "__main__":
    main()
