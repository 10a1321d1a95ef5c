"""Cost of isolating examples: time of one private step here, relative to that of a different checkout.

    python benchmarks/isolation.py --against ../other
    python benchmarks/isolation.py --against ../other --only lenet5 mlp --rounds 9 --threads 2 --clock wall

Each checkout is measured in separate processes, interleaved (here, there, here, there, ...), with its own packages and
its own `benchmarks/steps.py`; batches, threads and clock are the same. A process times steps of the engine and plain
steps, interleaved. "here / there" is the ratio of the medians of the engine's steps. For two equal checkouts it is 1
within the noise of the machine, which the last column shows for plain steps.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

#: Workload to batch size.
SIZES = {"lenet5": 512, "mlp": 512, "resnet18-gn": 32, "text-encoder": 64}

#: Warm-up steps; the first ones choose formulas and allocate memory.
WARM_UP = 3

ROWS = ("engine", "plain")


def workload(name: str) -> Any:
    """A workload of the measured checkout, or the dense network, which is defined here."""
    from torch import nn
    from workloads import WORKLOADS, Workload, images

    if name in WORKLOADS:
        return WORKLOADS[name]
    return Workload(
        name, lambda: nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10)), images(784), (SIZES[name],)
    )


def measure_here(options: argparse.Namespace) -> None:
    """Print the seconds of each step as JSON; runs in a process of a checkout."""
    sys.path[0] = str(Path(options.measure) / "benchmarks")
    import torch
    from steps import CLOCKS, build, timed

    torch.set_num_threads(options.threads)
    found: dict[str, dict[str, list[float]]] = {}
    for name in options.only:
        chosen = workload(name)
        steps = {"engine": build(options.engine, chosen, SIZES[name]), "plain": build("plain", chosen, SIZES[name])}
        for step in steps.values():
            for _ in range(WARM_UP):
                step()
        times: dict[str, list[float]] = {row: [] for row in ROWS}
        for _ in range(options.repeats):
            for row in ROWS:
                times[row].append(timed(steps[row], options.seconds, CLOCKS[options.clock]))
        found[name] = times
    print(json.dumps(found))


def measure(checkout: Path, arguments: list[str], threads: int) -> dict[str, dict[str, list[float]]]:
    """Measure a checkout in a separate process."""
    count = str(threads)
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count}
    command = [sys.executable, "-W", "ignore", str(Path(__file__).resolve()), "--measure", str(checkout), *arguments]
    done = subprocess.run(command, env=environment, cwd=checkout, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, dict[str, list[float]]] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(options: argparse.Namespace, arguments: list[str]) -> None:
    """Measure both checkouts, interleaved, and print the table."""
    sides = {"here": ROOT, "there": options.against.resolve()}
    times: dict[str, dict[str, dict[str, list[float]]]] = {
        side: {name: {row: [] for row in ROWS} for name in options.only} for side in sides
    }
    for round_number in range(options.rounds):
        order = list(sides) if round_number % 2 == 0 else list(sides)[::-1]
        for side in order:
            for name, found in measure(sides[side], arguments, options.threads).items():
                for row in ROWS:
                    times[side][name][row] += found[row]
    threads = f"{options.threads} thread{'s' * (options.threads != 1)}"
    print(f"{options.rounds} alternating rounds, {threads}, {options.clock} time, engine {options.engine!r}; ms\n")
    print("| workload (batch) | here | there | here / there | x plain here | x plain there | plain here / there |")
    print("|---|---|---|---|---|---|---|")
    for name in options.only:
        here, there = ({row: statistics.median(times[side][name][row]) for row in ROWS} for side in sides)
        print(
            f"| {name} ({SIZES[name]}) | {1e3 * here['engine']:.2f} | {1e3 * there['engine']:.2f} "
            f"| {here['engine'] / there['engine']:.3f} | {here['engine'] / here['plain']:.2f} "
            f"| {there['engine'] / there['plain']:.2f} | {here['plain'] / there['plain']:.3f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="the other checkout")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--only", nargs="+", choices=sorted(SIZES), default=list(SIZES), help="default: all")
    parser.add_argument("--engine", default="bookkeeping")
    parser.add_argument("--rounds", type=int, default=5, help="processes of each checkout")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each step per process")
    parser.add_argument("--seconds", type=float, default=0.3, help="least time per measurement")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="cpu", help="use wall on an idle machine only")
    options = parser.parse_args()
    if options.measure:
        measure_here(options)
    elif options.against is None or not (options.against / "benchmarks" / "steps.py").is_file():
        parser.error("give the other checkout with --against; it must have benchmarks/steps.py")
    else:
        compare(options, _passed_on(options))


def _passed_on(options: argparse.Namespace) -> list[str]:
    """The command line of the processes that measure."""
    names = ("engine", "repeats", "seconds", "threads", "clock")
    return [f"--{name}={getattr(options, name)}" for name in names] + ["--only", *options.only]


if __name__ == "__main__":
    main()
