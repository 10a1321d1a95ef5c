"""Training steps of one workload that can be timed beside each other: plain, private by our engines, private by Opacus.

A step is: forward, backward, clip, noise, SGD with momentum; plain ones leave out clip and noise.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from peers import for_opacus, require_equal
from torch import nn
from workloads import Workload

from mechanisms.clipping import Fixed
from mechanisms.engines import ENGINES, Batch, Engine, FlatLayout
from mechanisms.engines.memory import peak_bytes
from mechanisms.engines.pool_first import PoolFirst, pooling_of
from mechanisms.noise import Gaussian
from mechanisms.units import ClippedUnit

LEARNING_RATE, MOMENTUM, BOUND = 1e-3, 0.9, 1.0
OPACUS_MODES = ("hooks", "functorch", "ew", "ghost")

Step = Callable[[], object]


@dataclass(frozen=True)
class PlainTuning:
    """How plain training is sped up: memory order, and activations behind the pooling that follows with our pooling."""

    channels_last: bool = False
    pool_first: bool = False


#: Plain training as users run it, and tuned by hand: the stricter limits, for images only.
PLAIN = {
    "plain": PlainTuning(),
    "plain-channels-last": PlainTuning(channels_last=True),
    "plain-pool-first": PlainTuning(pool_first=True),
    "plain-tuned": PlainTuning(channels_last=True, pool_first=True),
}


def fresh_network(workload: Workload) -> nn.Module:
    torch.manual_seed(0)
    return workload.network()


def optimizer_of(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(network.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)


def plain_step(tuning: PlainTuning, workload: Workload, size: int) -> Step:
    network, (x, y) = fresh_network(workload), workload.batch(size)
    order: AbstractContextManager[object] = nullcontext()
    if tuning.channels_last:
        network, x = network.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    moved = pooling_of(network, x[:2])[1] if tuning.pool_first else frozenset()
    optimizer = optimizer_of(network)

    def step() -> None:
        optimizer.zero_grad()
        with PoolFirst(moved) if tuning.pool_first else order:
            loss = F.cross_entropy(network(x), y)
        loss.backward()
        optimizer.step()

    return step


def engine_step(name: str, workload: Workload, size: int) -> Step:
    """A step of one of our engines."""
    return step_and_engine(name, workload, size)[0]


def step_and_engine(name: str, workload: Workload, size: int, reuse: bool = True) -> tuple[Step, Engine]:
    """A step of one of our engines, and the engine; ``reuse``: the flat sum stays from step to step, as in training."""
    network, (x, y) = fresh_network(workload), workload.batch(size)
    optimizer, engine = optimizer_of(network), ENGINES.create(name, ClippedUnit(1, size))
    parameters, layout = list(network.parameters()), FlatLayout.of(network)
    noise, clip, loss_fn = Gaussian(initial_noise_multiplier=1.0), Fixed(), nn.CrossEntropyLoss()
    clip.start(BOUND)
    total = layout.zeros(layout.size) if reuse else None

    def step() -> None:
        noisy = noise.add(engine.clipped_sum(network, loss_fn, Batch(x, y), clip, total), 0)
        for parameter, gradient in zip(parameters, layout.views(noisy.div_(size)), strict=True):
            parameter.grad = gradient
        optimizer.step()

    return step, engine


def opacus_step(mode: str, workload: Workload, size: int) -> Step:
    """A step of Opacus on the workload's network, in the form that Opacus takes.

    Raises:
        AssertionError: That form is not the same function.
    """
    from opacus import PrivacyEngine
    from torch.utils.data import DataLoader, TensorDataset

    given, (x, y) = fresh_network(workload).train(), workload.batch(size)
    network = for_opacus(given)
    require_equal(given, network, x[:4])
    made = PrivacyEngine().make_private(
        module=network,
        optimizer=optimizer_of(network),
        criterion=nn.CrossEntropyLoss(),
        data_loader=DataLoader(TensorDataset(x, y), batch_size=size),
        noise_multiplier=1.0,
        max_grad_norm=BOUND,
        poisson_sampling=False,
        grad_sample_mode=mode,
    )
    private, optimizer = made[0], made[1]
    criterion = made[2] if mode == "ghost" else nn.CrossEntropyLoss()

    def step() -> None:
        optimizer.zero_grad()
        criterion(private(x), y).backward()
        optimizer.step()

    return step


def build(name: str, workload: Workload, size: int) -> Step:
    """The step called ``name``: one of ``PLAIN``, an engine, or ``opacus-`` with a mode."""
    if name in PLAIN:
        return plain_step(PLAIN[name], workload, size)
    if name.startswith("opacus-"):
        return opacus_step(name.removeprefix("opacus-"), workload, size)
    return engine_step(name, workload, size)


def peak_mib(name: str, workload: Workload, size: int, step: Step) -> float:
    """Most MiB that tensors made by a step held at one time, gradients and all that engines keep included."""
    if name not in ENGINES:
        return peak_bytes(torch.device("cpu"), step) / 2**20
    step, engine = step_and_engine(name, workload, size, reuse=False)
    return (peak_bytes(torch.device("cpu"), step) + engine.held_bytes) / 2**20


def makes_sense(name: str, workload: Workload) -> bool:
    """Whether a row tells something that plain training's does not: memory order is of images alone."""
    return name not in PLAIN or name == "plain" or workload.inputs(1).dim() == 4


#: What is measured: time on the wall, or time that this process was computing (all its threads together).
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def timed(step: Step, at_least: float, clock: Callable[[], float]) -> float:
    """Seconds per step, over as many steps as take ``at_least`` seconds."""
    count, start = 0, clock()
    while count == 0 or clock() - start < at_least:
        step()
        count += 1
    return (clock() - start) / count
