"""Whole fits of LeNet5, as sections of ``benchmarks/cuda.py``."""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from device_measures import finish
from torch import nn

from dpmodel import Callback, DPModel, NoiseMechanismsFactory
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
        for name, epoch in (
            ("plain loop", _plain(data, size, task.device)),
            ("dpmodel", _private(data, size, task.device)),
        ):
            first = _seconds(epoch, task.device)
            later = [first]
            while not task.quick and len(later) < 4 and not task.over(0.8):
                later.append(_seconds(epoch, task.device))
            best = min(later)
            steps = len(data) // size
            task.emit(
                {
                    "kind": "fit",
                    "section": f"LeNet5, batch {size}",
                    "row": name,
                    "took": f"{best:.3g} s an epoch, {1e3 * best / steps:.3g} ms a step",
                    "words": f"first epoch {first:.3g} s; {len(data):,} examples, {words}",
                }
            )


def _seconds(work, device: str) -> float:
    finish(device)
    begun = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        work()
    finish(device)
    return time.perf_counter() - begun


def _network_and_optimizer(device: str, lr: float) -> tuple[nn.Module, torch.optim.Optimizer]:
    network = LeNet5(activation="tanh", init="orthogonal", seed=1).to(device)
    return network, torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9)


def _plain(data: InMemoryDataset, size: int, device: str):
    network, optimizer = _network_and_optimizer(device, 0.1)

    def epoch() -> None:
        for rows in torch.randperm(len(data), device=device)[: len(data) // size * size].split(size):
            x, y = data.batch(rows)
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x), y).backward()
            optimizer.step()

    return epoch


def _private(data: InMemoryDataset, size: int, device: str):
    network, optimizer = _network_and_optimizer(device, 3.0)
    noise = NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=0.8)
    model = DPModel(network, nn.CrossEntropyLoss(), optimizer, norm_bound=0.1, noise_mech=noise, device=device)
    loader = PrivateLoader(data, size)
    return lambda: model.fit(loader, epochs=1)


class TrainingTime(Callback):
    """Seconds from the first step to the last."""

    def on_train_begin(self, run) -> None:
        """Start the clock."""
        self.begun = time.perf_counter()

    def on_train_end(self, run) -> None:
        """Stop it."""
        self.seconds = time.perf_counter() - self.begun


def train_section(task: Task) -> None:
    """LeNet5 on MNIST through ``dpmodel train``: the training apart from start-up and calibration."""
    from dpmodel.callbacks import Silence
    from dpmodel.config import load_config
    from dpmodel.runs.train import train_from_config

    overrides = [f"performance.device={task.device}"]
    overrides += ["data.limit=4096", "training.epochs=1"] if task.quick else []
    clock, begun = TrainingTime(), time.perf_counter()
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
