"""Whole fits of LeNet5, as sections of ``benchmarks/cuda.py``."""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from device_measures import finish
from torch import nn

from dpmodel import Callback, DPModel, NoiseMechanismsFactory
from dpmodel.callbacks import Silence
from dpmodel.data import load_dataset
from dpmodel.data.in_memory import InMemoryDataset
from dpmodel.data.loader import PrivateLoader
from dpmodel.nets.lenet5 import LeNet5
from monitors.errors import DataError

if TYPE_CHECKING:
    from cuda_sections import Task

BATCH_SIZES = (512, 4096)
CONFIG = Path(__file__).parents[1] / "configs" / "lenet5_mnist_gaussian.yaml"


def training_data(task: Task) -> tuple[InMemoryDataset, str]:
    """MNIST if available, else random images of its shape; and a description of the data."""
    try:
        data, words = load_dataset("mnist", image_size=32).train, "MNIST"
    except DataError:
        data = InMemoryDataset(
            torch.randint(0, 256, (60_000, 1, 32, 32), dtype=torch.uint8), torch.randint(0, 10, (60_000,))
        )
        words = "random images of MNIST's shape"
    if task.quick:
        data = InMemoryDataset(data.x[:4096], data.y[:4096])
    return data.to(task.device), words


def fit_section(task: Task) -> None:
    """Epochs of ``fit``, compared with a plain loop over the same tensors."""
    data, words = training_data(task)
    for size in BATCH_SIZES:
        steps = len(data) // size
        for name, train in (("plain loop", _plain), ("dpmodel", _private)):
            begun = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):
                before, epochs = train(data, size, task)
            whole = time.perf_counter() - begun
            best = min(epochs)
            task.emit(
                {
                    "kind": "fit",
                    "section": f"LeNet5, batch {size}",
                    "row": name,
                    "took": f"{best:.3g} s an epoch, {1e3 * best / steps:.3g} ms a step",
                    "words": f"{before:.3g} s before the first step, first epoch {epochs[0]:.3g} s, {len(epochs)} "
                    f"epochs in all {whole:.3g} s; {len(data):,} examples, {words}",
                }
            )


def _network_and_optimizer(device: str, lr: float) -> tuple[nn.Module, torch.optim.Optimizer]:
    network = LeNet5(activation="tanh", init="orthogonal", seed=1).to(device)
    return network, torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9)


def _plain(data: InMemoryDataset, size: int, task: Task) -> tuple[float, list[float]]:
    """Seconds before the first step, and of each epoch."""
    network, optimizer = _network_and_optimizer(task.device, 0.1)
    found = []
    for _ in range(_epochs(task)):
        finish(task.device)
        begun = time.perf_counter()
        for rows in torch.randperm(len(data), device=task.device)[: len(data) // size * size].split(size):
            x, y = data.batch(rows)
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x), y).backward()
            optimizer.step()
        finish(task.device)
        found.append(time.perf_counter() - begun)
    return 0.0, found


def _private(data: InMemoryDataset, size: int, task: Task) -> tuple[float, list[float]]:
    """Likewise, of ``fit``."""
    network, optimizer = _network_and_optimizer(task.device, 3.0)
    noise = NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=0.8)
    model = DPModel(network, nn.CrossEntropyLoss(), optimizer, norm_bound=0.1, noise_mech=noise, device=task.device)
    clock, begun = TrainingTime(task.device), time.perf_counter()
    model.fit(PrivateLoader(data, size), epochs=_epochs(task), callbacks=[Silence(), clock])
    return clock.begun - begun, clock.epochs


def _epochs(task: Task) -> int:
    return 1 if task.quick else 5


class TrainingTime(Callback):
    """Measures the seconds from the first step to the last, and those of each epoch.

    Args:
        device: The device whose work is waited for at the end of an epoch.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.epochs: list[float] = []

    def on_train_begin(self, run: Any) -> None:
        """Start the clock."""
        self.begun = self._last = time.perf_counter()

    def on_train_epoch_end(self, run: Any) -> None:
        """Take the time of the epoch."""
        finish(self.device)
        now = time.perf_counter()
        self.epochs.append(now - self._last)
        self._last = now

    @property
    def seconds(self) -> float:
        """Seconds of all epochs."""
        return sum(self.epochs)


def train_section(task: Task) -> None:
    """LeNet5 on MNIST through ``dpmodel train``: the training apart from start-up and calibration."""
    from dpmodel.config import load_config
    from dpmodel.runs.train import train_from_config

    overrides = [f"performance.device={task.device}"]
    overrides += ["data.limit=4096", "training.epochs=1"] if task.quick else []
    clock, begun = TrainingTime(task.device), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = train_from_config(load_config(CONFIG, overrides), Path(folder) / "run", callbacks=[Silence(), clock])
        finish(task.device)
    whole = time.perf_counter() - begun
    metrics = ", ".join(f"{name} {value:.4f}" for name, value in (result.metrics or {}).items())
    task.emit(
        {
            "kind": "fit",
            "section": f"configs/{CONFIG.name}",
            "row": "dpmodel train",
            "took": f"{clock.seconds:.3g} s from first to last step, {whole:.3g} s in all",
            "words": f"{metrics}; epsilon {result.report.spent.epsilon:.3f}",
        }
    )
