"""Time of the commands that do not train, and the time of a training before its first step.

    python benchmarks/startup.py [--runs 9]
    python benchmarks/startup.py --trainings vgg11 lenet5 resnet18 [--runs 3]
    python benchmarks/startup.py --images cifar10_jpeg.zip [--runs 3]

Commands are whole processes: best and median of several runs. Images are those of a zip archive of class folders, read
as it is and as an unpacked folder, each time by a new process: seconds of ``load_dataset``, without imports. Trainings
are measured on one thread in CPU time, in units of plain steps with the same batch size. Targets: ``dpmodel budget``
takes less than 0.7 s; ``import dpmodel`` loads no torch; VGG11 (129 million weights) starts within 25 plain steps.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = ["-n", "60000", "-b", "256", "-e", "10"]

COMMANDS = {
    "python, nothing else": ["-c", "pass"],
    "import dpmodel": ["-c", "import dpmodel"],
    "budget: epsilon of a multiplier": ["-m", "dpmodel", "budget", *SETTINGS, "--noise-multiplier", "1.5"],
    "budget: multiplier for epsilon 3": ["-m", "dpmodel", "budget", *SETTINGS, "--target-epsilon", "3"],
    "budget: configuration": ["-m", "dpmodel", "budget", "configs/lenet5_mnist.yaml"],
}


def seconds(arguments: list[str]) -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, *arguments], capture_output=True, cwd=ROOT, check=True)
    return time.perf_counter() - begun


BATCH, PLAIN_STEPS = 32, 5

TRAININGS = ("vgg11", "lenet5", "resnet18")


def network_of(name: str) -> Any:
    """A network and the shape of its images."""
    from torch import nn
    from torchvision import models
    from workloads import WORKLOADS

    if name == "lenet5":
        return WORKLOADS["lenet5"].network(), (1, 32, 32)
    options = {"norm_layer": lambda channels: nn.GroupNorm(min(32, channels), channels)} if name == "resnet18" else {}
    return getattr(models, name)(num_classes=10, **options), (3, 32, 32)


def plain_seconds(name: str, x: Any, y: Any) -> float:
    from torch import nn, optim

    network, times = network_of(name)[0], []
    optimizer = optim.SGD(network.parameters(), lr=0.01)
    for _ in range(PLAIN_STEPS + 1):
        begun = time.process_time()
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x[:BATCH]), y[:BATCH]).backward()
        optimizer.step()
        times.append(time.process_time() - begun)
    return statistics.median(times[1:])


def seconds_before(name: str, data: Any) -> tuple[float, float]:
    """Seconds until a training begins, and until its first step is done."""
    from torch import nn, optim

    from dpmodel import Callback, DPModel, NoiseMechanismsFactory, poisson_loader

    class Clock(Callback):
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_train_begin(self, run: Any) -> None:
            self.times.append(time.process_time())

        def on_train_step_end(self, run: Any) -> None:
            self.times.append(time.process_time())

    network, clock = network_of(name)[0], Clock()
    noise = NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=1.0)
    model = DPModel(network, nn.CrossEntropyLoss(), optim.SGD(network.parameters(), lr=0.01), noise_mech=noise)
    clock.times.append(time.process_time())
    with contextlib.redirect_stdout(io.StringIO()):
        model.fit(poisson_loader(data, batch_size=BATCH), callbacks=[clock])
    begun, started, stepped = clock.times[:3]
    return started - begun, stepped - begun


def trainings(names: list[str], runs: int) -> None:
    import torch
    from torch.utils.data import TensorDataset

    torch.set_num_threads(1)
    print(f"{'training':<12}{'plain step, ms':>16}{'start, plain steps':>20}{'with the first step':>21}")
    for name in names:
        x, y = torch.randn(2 * BATCH, *network_of(name)[1]), torch.randint(0, 10, (2 * BATCH,))
        plain = plain_seconds(name, x, y)
        seconds_before(name, TensorDataset(x, y))  # warm-up: loads modules, allocates memory
        found = [seconds_before(name, TensorDataset(x, y)) for _ in range(runs)]
        start, first = (statistics.median(column) / plain for column in zip(*found, strict=True))
        print(f"{name:<12}{1e3 * plain:16.1f}{start:20.1f}{first:21.1f}")


READ = """
import json, sys, time
from dpmodel.data import load_dataset
options = json.loads(sys.argv[1])
begun, busy = time.perf_counter(), time.process_time()
load_dataset("image_folder", **options)
print(time.perf_counter() - begun, time.process_time() - busy)
"""


def read_seconds(**options: Any) -> tuple[float, float]:
    """Seconds and seconds of CPU time of one reading, in a process of its own."""
    command = [sys.executable, "-c", READ, json.dumps(options)]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    elapsed, busy = map(float, shown.split())
    return elapsed, busy


def images(archive: Path, runs: int) -> None:
    few = {"limit": 1000, "test_limit": 1000}
    print(f"{'images':<44}{'s':>8}{'CPU s':>8}")
    with tempfile.TemporaryDirectory() as place:
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(Path(place) / "folder")
        for kind, root in (("zip archive", archive.absolute()), ("folder", Path(place) / "folder")):
            cases: dict[str, dict[str, Any]] = {
                "all, no cache": {"cache": None},
                "1,000 and 1,000, no cache": {"cache": None, **few},
                "all, first start": {"cache": f"{place}/cache"},
                "all, later starts": {"cache": f"{place}/cache"},
                "1,000 and 1,000, later starts": {"cache": f"{place}/cache", **few},
            }
            for words, options in cases.items():
                repeated = 1 if words.endswith("first start") else runs
                found = [read_seconds(root=os.fspath(root), **options) for _ in range(repeated)]
                elapsed, busy = (statistics.median(column) for column in zip(*found, strict=True))
                print(f"{f'{kind}: {words}':<44}{elapsed:8.2f}{busy:8.2f}", flush=True)
        kept = sum(path.stat().st_size for path in Path(place, "cache").rglob("*") if path.is_file())
    print(f"files of the cache, two sources: {kept / 1e6:.0f} MB; archive: {archive.stat().st_size / 1e6:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9, help="timed runs of each")
    parser.add_argument("--trainings", nargs="+", choices=TRAININGS, help="measure these instead of the commands")
    parser.add_argument("--images", type=Path, help="measure reading this zip archive of class folders instead")
    options = parser.parse_args()
    if options.images:
        images(options.images, options.runs)
        return
    if options.trainings:
        trainings(options.trainings, options.runs)
        return
    runs = options.runs
    print(f"{'command':<36}{'best s':>8}{'median s':>10}")
    for name, arguments in COMMANDS.items():
        seconds(arguments)
        times = [seconds(arguments) for _ in range(runs)]
        print(f"{name:<36}{min(times):8.2f}{statistics.median(times):10.2f}")


if __name__ == "__main__":
    main()
