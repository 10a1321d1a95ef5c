"""Whole epochs of LeNet5 on MNIST (60,000 images, batch 512): dpmodel, Opacus and plain torch, side by side.

    PYTHONPATH=. python benchmarks/epoch.py [--rounds 3] [--peers plain,dpmodel,opacus-ghost] [--output FILE]

Times include everything: sampling and fetching rows, forward, backward, clipping, noise, update. ``plain`` is SGD with
momentum on the same in-memory tensors, without privacy; Opacus uses its own Poisson loader over them. Rounds are
interleaved; ratios are medians over rounds of plain time over private time in the same round.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from machine import description
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dpmodel import DPModel, NoiseMechanismsFactory
from dpmodel.data import load_dataset
from dpmodel.data.in_memory import InMemoryDataset
from dpmodel.data.loader import PrivateLoader
from dpmodel.nets.lenet5 import LeNet5

BATCH = 512
NOISE, BOUND, LEARNING_RATE = 0.8, 0.1, 3.0

Epoch = Callable[[], object]


def network_and_optimizer() -> tuple[nn.Module, torch.optim.Optimizer]:
    network = LeNet5(activation="tanh", init="torch", seed=1)
    return network, torch.optim.SGD(network.parameters(), lr=LEARNING_RATE, momentum=0.9)


def plain(data: InMemoryDataset) -> Epoch:
    network, optimizer = network_and_optimizer()
    for group in optimizer.param_groups:
        group["lr"] = 0.1

    def epoch() -> None:
        for rows in torch.randperm(len(data)).split(BATCH):
            x, y = data.batch(rows)
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x), y).backward()
            optimizer.step()

    return epoch


def dpmodel(data: InMemoryDataset) -> Epoch:
    network, optimizer = network_and_optimizer()
    noise = NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=NOISE)
    model = DPModel(network, nn.CrossEntropyLoss(), optimizer, norm_bound=BOUND, noise_mech=noise)
    loader = PrivateLoader(data, BATCH)
    return lambda: model.fit(loader, epochs=1)


def opacus(mode: str, data: InMemoryDataset) -> Epoch:
    from opacus import PrivacyEngine

    network, optimizer = network_and_optimizer()
    x, y = data.batch(torch.arange(len(data)))
    loader = DataLoader(TensorDataset(x, y), batch_size=BATCH)
    made = PrivacyEngine().make_private(
        module=network,
        optimizer=optimizer,
        data_loader=loader,
        criterion=nn.CrossEntropyLoss(),
        noise_multiplier=NOISE,
        max_grad_norm=BOUND,
        grad_sample_mode=mode,
    )
    private, private_optimizer, *criterion, private_loader = made
    loss_fn = criterion[0] if criterion else nn.CrossEntropyLoss()

    def epoch() -> None:
        for inputs, targets in private_loader:
            private_optimizer.zero_grad()
            loss_fn(private(inputs), targets).backward()
            private_optimizer.step()

    return epoch


def build(name: str, data: InMemoryDataset) -> Epoch:
    if name.startswith("opacus-"):
        return opacus(name.removeprefix("opacus-"), data)
    return {"plain": plain, "dpmodel": dpmodel}[name](data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="timed epochs of each")
    parser.add_argument("--peers", default="plain,dpmodel,opacus-ghost,opacus-hooks")
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    here = description("opacus")
    data = load_dataset("mnist", image_size=32).train
    names = arguments.peers.split(",")
    epochs = {name: build(name, data) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(arguments.rounds):
        for name, epoch in epochs.items():
            begun = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):
                epoch()
            seconds[name].append(time.perf_counter() - begun)
    lines = [
        "# Whole epochs of the main training",
        "",
        f"LeNet5 (tanh), {len(data):,} images, batch {BATCH}, {arguments.rounds} alternating rounds; {here}",
        "The time includes everything: drawing rows, fetching, forward, backward, clipping, noise, update. The ratio",
        "is the median over rounds of plain time divided by private time in the same round.",
        "",
        "| what | s per epoch | x plain |",
        "|---|---|---|",
    ]
    for name, values in seconds.items():
        ratios = [a / b for a, b in zip(seconds[names[0]], values, strict=True)]
        lines.append(f"| {name} | {statistics.median(values):.2f} | {statistics.median(ratios):.2f} |")
    print("\n".join(lines))
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
