"""Secure noise beside the insecure and the plain ways to get it: millions of float32 normal numbers per second.

    PYTHONPATH=. python benchmarks/noise.py [--rounds 30] [--threads 1 2]

Sizes are those of LeNet5 (61,684 parameters), a million, and ResNet18 (11.2 million). All fill memory that is there
already, as the noise of a step does. ``torch normal_`` is the Mersenne Twister, which must not be used for privacy;
``os.urandom`` is the system's generator under the same transform; ``float64`` is the secure generator's other path.
The ways take turns; best and median of the rounds. Writes ``benchmarks/results/noise.md``.
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

import torch

from mechanisms.box_muller import add_normal
from mechanisms.rng import SecureGenerator

SIZES = (61_684, 1_000_000, 11_200_000)
RESULTS = Path(__file__).parent / "results" / "noise.md"


class SystemStream:
    """Stands for the cipher: random bytes of the operating system, whatever the counter."""

    def update_into(self, data: memoryview, buffer: bytearray) -> None:
        """Write as many random bytes as ``data`` has into ``buffer``."""
        buffer[: len(data)] = os.urandom(len(data))


def ways(size: int) -> dict[str, Callable[[], object]]:
    generator, single, double = SecureGenerator(), torch.zeros(size), torch.zeros(size, dtype=torch.float64)
    numbers = single.numpy()
    return {
        "dpmodel float32": lambda: generator.add_normal_(single, 1.3),
        "torch normal_ float32": lambda: single.normal_(0.0, 1.3),
        "os.urandom float32": lambda: add_normal(numbers, 1.3, lambda _: SystemStream(), torch.get_num_threads()),
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
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
    RESULTS.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
