"""Time of a private step by the number of micro-batches that are clipped as wholes, compared with plain training.

    PYTHONPATH=. python benchmarks/micro_batches.py [--model lenet5 text-encoder] [--batch 512] [--output FILE]

Rounds are interleaved; ratios are medians over rounds of the times in one round.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from pathlib import Path

import torch
from machine import description
from steps import CLOCKS, PLAIN, Step, plain_step, private_step, timed
from workloads import WORKLOADS, Workload

from mechanisms.engines.memory import peak_bytes

#: Number of micro-batches over the batch size.
SHARES = (1 / 64, 1 / 8, 1 / 2)


def rows_of(workload: Workload, size: int) -> dict[str, Step]:
    """Steps by name: plain, per micro-batch, per example."""
    steps: dict[str, Step] = {"plain": plain_step(PLAIN["plain"], workload, size)}
    for share in SHARES:
        groups = max(1, round(share * size))
        name = f"{groups} micro-batch{'es' * (groups != 1)} of {size // groups}"
        steps[name] = private_step("bookkeeping", workload, size, groups=groups).step
    steps["each example"] = private_step("bookkeeping", workload, size).step
    return steps


def measure(workload: Workload, size: int, options: argparse.Namespace) -> list[str]:
    """Rows of the table."""
    steps, clock = rows_of(workload, size), CLOCKS[options.clock]
    for step in steps.values():
        step()
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(options.rounds):
        for name, step in steps.items():
            times[name].append(timed(step, options.seconds, clock))
    found = []
    for name, values in times.items():
        ratio = statistics.median(a / b for a, b in zip(times["plain"], values, strict=True))
        peak = peak_bytes(torch.device("cpu"), steps[name]) / 2**20
        middle = 1e3 * statistics.median(values)
        found.append(f"| {workload.name} ({size}) | {name} | {middle:.1f} | {ratio:.2f} | {peak:.0f} |")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ["lenet5", "mnist-cnn", "text-encoder"]
    parser.add_argument("--model", nargs="+", choices=sorted(WORKLOADS), default=names)
    parser.add_argument("--batch", type=int, help="batch size; default: 512, and 64 for texts")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.5, help="least time per row and round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall", help="on a busy machine: cpu, --threads 1")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    lines = [
        "# One private step by the number of micro-batches",
        "",
        description(),
        f"{options.rounds} rounds, alternating, at least {options.seconds:g} s per row and round, {options.clock}",
        "time; ratios are medians over rounds of the times in one round. A step is forward, backward, clip, secure",
        "noise, SGD with momentum; plain has neither clip nor noise. The mean gradient of each micro-batch is clipped",
        "as a whole.",
        "",
        "| workload (batch) | clipped | ms/step | x plain | peak MiB |",
        "|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for name in options.model:
        rows = measure(WORKLOADS[name], options.batch or (64 if name == "text-encoder" else 512), options)
        print("\n".join(rows), flush=True)
        lines += rows
    if options.output:
        options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
