"""Time of a private step in one process and shared by two, on the same number of threads.

    python benchmarks/distributed.py
    python benchmarks/distributed.py --only lenet5 --rounds 7 --output benchmarks/results/distributed.md

One process has two threads, two processes have one thread each, and both train on the same logical batches through
`DPModel.fit` with a Gloo group on this machine. The runs alternate. "speed-up" is the ratio of the medians: 1 means
that sharing costs what it gains. The last column is the time of a step in which the ranks have nothing to compute: the
exchange of headers, sums and noise, for a network of the same size.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

#: Workload to batch size.
SIZES = {"lenet5": 512, "mlp": 512, "cifar-cnn": 256}

WARM_UP = 3


class Clock:
    """Seconds of each step after the first ones."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._begun = 0.0

    def on_train_step_begin(self, run: Any) -> None:
        """Start the clock."""
        self._begun = time.perf_counter()

    def on_train_step_end(self, run: Any) -> None:
        """Stop it."""
        if run.step > WARM_UP:
            self.seconds.append(time.perf_counter() - self._begun)


def measure(options: argparse.Namespace) -> None:
    """Train a few steps on one rank; rank 0 prints the seconds of each step as JSON."""
    import torch
    import torch.distributed as dist
    from isolation import workload
    from torch.utils.data import DataLoader, TensorDataset

    from dpmodel import DPModel, NoiseMechanismsFactory
    from dpmodel.callbacks import Silence

    torch.set_num_threads(1 if options.empty else 2 // options.size)
    torch.manual_seed(0)
    if options.size > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{options.meeting}", rank=options.rank, world_size=options.size
        )
    chosen, batch_size = workload(options.measure), SIZES[options.measure]
    batch_size = 2 if options.empty else batch_size
    x, y = chosen.batch(4 * batch_size)
    network = chosen.network()
    model = DPModel(
        network,
        torch.nn.CrossEntropyLoss(),
        torch.optim.SGD(network.parameters(), lr=0.01),
        noise_mech=NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=1.0),
        engine="bookkeeping",
    )
    clock = Clock()
    epochs = -(-(WARM_UP + options.steps) // 4)
    model.fit(DataLoader(TensorDataset(x, y), batch_size=batch_size), epochs, callbacks=[clock, Silence()])
    if options.rank == 0:
        print(json.dumps(clock.seconds))


def seconds(name: str, size: int, steps: int, *, empty: bool = False) -> list[float]:
    """Seconds of each step with ``size`` processes."""
    root = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-W", "ignore", str(Path(__file__).resolve()), f"--measure={name}"]
        command += [f"--size={size}", f"--steps={steps}", f"--meeting={folder}/meeting"] + ["--empty"] * empty
        environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": str(1 if empty else 2 // size)}
        ranks = [
            subprocess.Popen([*command, f"--rank={rank}"], env=environment, stdout=subprocess.PIPE, text=True)
            for rank in range(size)
        ]
        outputs = [rank.communicate(timeout=600)[0] for rank in ranks]
    seconds: list[float] = json.loads(outputs[0].splitlines()[-1])
    return seconds


def table(options: argparse.Namespace) -> list[str]:
    from machine import description

    lines = [
        "# Several processes",
        "",
        "`python benchmarks/distributed.py`: a private step in one process with two threads, and shared by two",
        "processes with one thread each. " + description(),
        "",
        "| workload (batch) | one process, ms | two processes, ms | speed-up | exchange alone, ms |",
        "|---|---|---|---|---|",
    ]
    for name in options.only:
        times: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(options.rounds):
            for size in times:
                times[size] += seconds(name, size, options.steps)
        one, two = (statistics.median(times[size]) for size in (1, 2))
        bare = (statistics.median(seconds(name, size, options.steps, empty=True)) for size in (2, 1))
        exchange = next(bare) - next(bare)
        row = f"{1e3 * one:.1f} | {1e3 * two:.1f} | {one / two:.2f} | {1e3 * exchange:.1f}"
        lines.append(f"| {name} ({SIZES[name]}) | {row} |")
        print(lines[-1], file=sys.stderr)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sorted(SIZES), default=list(SIZES), help="default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=17, help="steps per process")
    parser.add_argument("--output", type=Path, help="write the table there")
    for hidden in ("--measure", "--meeting"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    for hidden in ("--rank", "--size"):
        parser.add_argument(hidden, type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--empty", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options)
        return
    text = "\n".join(table(options)) + "\n"
    print(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
