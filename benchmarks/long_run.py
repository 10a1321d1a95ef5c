"""Time and memory of a step over a long training: they must stay flat.

    python benchmarks/long_run.py
    python benchmarks/long_run.py --steps 5000 --no-figure

A tiny linear model is trained with fixed and with decaying noise, fixed and adaptive clipping, under a monitor (``rdp``
or ``pld``), with epsilon printed by the monitor, shown in a progress bar, and recorded in the history after each epoch;
a keeper saves the state. Each training has a process of its own. Its steps are divided into ten windows. The table has
the processor time per step of each window, the last over the second (the first one warms up), and the growth of the
resident memory between the same windows. Writes ``benchmarks/results/long_run.md`` and
``docs/figures/long_run.svg`` and ``.png``.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import description

ROOT = Path(__file__).resolve().parents[1]
WINDOWS = 10
EPOCH = 250
EXAMPLES, BATCH = 4 * EPOCH, 4
#: From the first to the last step, decaying noise falls to this share.
LAST_SHARE = 0.5


class Windows:
    """A callback that notes the processor time and the resident memory at the end of each window."""

    def __init__(self, steps: int) -> None:
        self.length = max(1, steps // WINDOWS)
        self.seconds: list[float] = []
        self.mib: list[float] = []
        self._begun = time.process_time()

    def on_train_step_end(self, run: Any) -> None:
        """Note a window that ends here."""
        if run.step % self.length == 0:
            now = time.process_time()
            self.seconds.append((now - self._begun) / self.length)
            self.mib.append(resident_mib())
            self._begun = time.process_time()
            print(
                f"{run.step} steps: {1e3 * self.seconds[-1]:.2f} ms, {self.mib[-1]:.0f} MiB",
                file=sys.stderr,
                flush=True,
            )


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def train(noise: str, clip: str, policy: str, steps: int) -> dict[str, list[float]]:
    from rich.console import Console

    from dpmodel import DPModel, PrivacyMonitorFactory, ProgressBar, poisson_loader
    from dpmodel.saving.keeper import StateKeeper
    from mechanisms import ClipMechanismsFactory, NoiseMechanismsFactory

    torch.manual_seed(0)
    network = torch.nn.Linear(8, 2)
    decay: dict[str, Any] = (
        {"decay_policy": "Exp", "noise_decay_rate": -math.log(LAST_SHARE) / steps} if noise == "decaying" else {}
    )
    adaptive: dict[str, Any] = {"fraction_stddev": 2.0} if clip == "adaptive" else {}
    model = DPModel(
        network,
        torch.nn.CrossEntropyLoss(),
        torch.optim.SGD(network.parameters(), lr=0.01),
        noise_mech=NoiseMechanismsFactory.create(
            "AdaGaussian" if decay else "Gaussian", initial_noise_multiplier=4.0, **decay
        ),
        clip_mech=ClipMechanismsFactory.create("Gaussian" if adaptive else "Fixed", **adaptive),
    )
    data = torch.utils.data.TensorDataset(torch.randn(EXAMPLES, 8), torch.randint(0, 2, (EXAMPLES,)))
    windows = Windows(steps)
    bar = ProgressBar(console=Console(file=io.StringIO(), force_terminal=True, width=120))
    monitor = PrivacyMonitorFactory.create(policy, per_print_times=50)
    with tempfile.TemporaryDirectory() as folder:
        model.fit(
            poisson_loader(data, batch_size=BATCH),
            epochs=max(1, steps // EPOCH),
            callbacks=[monitor, bar, windows],
            keeper=StateKeeper(folder),
        )
    return {"seconds": windows.seconds, "mib": windows.mib}


def measured(steps: int, noise: str, clip: str, policy: str) -> dict[str, list[float]]:
    """The windows of a training in a process of its own."""
    command = [sys.executable, __file__, "--steps", str(steps), "--one", noise, clip, policy]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(rows: dict[str, dict[str, list[float]]]) -> list[str]:
    lines = [
        f"| training | {' | '.join(f'{n}' for n in range(1, WINDOWS + 1))} | last / second | MiB more |",
        f"|---|{'---:|' * (WINDOWS + 2)}",
    ]
    for name, row in rows.items():
        seconds, mib = row["seconds"], row["mib"]
        cells = " | ".join(f"{1e3 * value:.2f}" for value in seconds)
        lines.append(f"| {name} | {cells} | {seconds[-1] / seconds[1]:.2f} | {mib[-1] - mib[1]:.0f} |")
    return lines


def draw(rows: dict[str, dict[str, list[float]]], steps: int, folder: Path) -> None:
    from growth_figure import standalone_svg
    from matplotlib.figure import Figure

    from dpmodel.figures.files import save_figure
    from dpmodel.figures.style import Pen, add_legend, dress

    figure = Figure(figsize=(8, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    dress(left, "Time of a step", "steps", "ms (processor)")
    dress(right, "Memory", "steps", "MiB more than after the first window")
    for index, (name, row) in enumerate(rows.items()):
        x = [(number + 1) * steps // WINDOWS for number in range(len(row["seconds"]))]
        pen = Pen.of(index, len(rows)).line
        left.plot(x, [1e3 * value for value in row["seconds"]], label=name, **pen)
        right.plot(x, [value - row["mib"][0] for value in row["mib"]], **pen)
    left.set_ylim(bottom=0)
    add_legend(figure, left)
    folder.mkdir(parents=True, exist_ok=True)
    save_figure(figure, folder / "long_run.png")
    words = (
        "Processor time of a step and growth of memory over a long training, for each schedule, clipping and monitor"
    )
    (folder / "long_run.svg").write_text(standalone_svg(figure, "long_run", words), encoding="utf-8")


def options_from_command_line() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--noises", nargs="+", default=["fixed", "decaying"])
    parser.add_argument("--clips", nargs="+", default=["fixed", "adaptive"])
    parser.add_argument("--policies", nargs="+", default=["rdp", "pld"])
    parser.add_argument("--jobs", type=int, default=1, help="trainings at the same time")
    parser.add_argument("--one", nargs=3, metavar=("NOISE", "CLIP", "POLICY"), help=argparse.SUPPRESS)
    parser.add_argument("--no-figure", action="store_true", help="do not draw the figure")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "long_run.md")
    parser.add_argument("--figures", type=Path, default=ROOT / "docs" / "figures")
    return parser.parse_args()


def main() -> None:
    options = options_from_command_line()
    torch.set_num_threads(1)
    if options.one:
        noise, clip, policy = options.one
        print(json.dumps(train(noise, clip, policy, options.steps)))
        return
    trainings = list(itertools.product(options.noises, options.clips, options.policies))
    with ThreadPoolExecutor(options.jobs) as pool:
        found = list(pool.map(partial(measured, options.steps), *zip(*trainings, strict=True)))
    names = [f"{noise} noise, {clip} clipping, {policy}" for noise, clip, policy in trainings]
    rows = dict(zip(names, found, strict=True))
    lines = [
        "# Time and memory over a long training",
        "",
        description(),
        f"{options.steps:,} steps of a linear model, epochs of {EPOCH} steps, in {WINDOWS} windows: milliseconds of",
        "processor time per step, and growth of the resident memory from the second to the last window. Each training",
        "has a monitor that prints every 50 steps, a progress bar, a history and a state keeper. Decaying noise falls",
        f"to {LAST_SHARE:g} of its first multiplier.",
        "",
        *table(rows),
    ]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if not options.no_figure:
        draw(rows, options.steps, options.figures)


if __name__ == "__main__":
    main()
