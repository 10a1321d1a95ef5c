"""Training steps of one workload to be timed side by side: plain, private with our engines, private with Opacus.

A step is: forward, backward, clip, noise, SGD with momentum; plain steps have neither clip nor noise.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from peers import for_opacus, require_equal
from torch import nn
from workloads import Workload

from dpmodel.training.update import Update
from dpmodel.training.update_graph import UpdateGraph
from mechanisms.clipping import Fixed
from mechanisms.engines import ENGINES, Batch, Engine, FlatLayout, choose_engine
from mechanisms.engines.bookkeeping.pool_first import PoolFirst, pooling_of
from mechanisms.engines.memory import peak_bytes
from mechanisms.engines.parameters import trainable_parameters
from mechanisms.engines.precision import PRECISIONS
from mechanisms.engines.tally import Tally
from mechanisms.noise import Gaussian, NoiseMechanism
from mechanisms.units import ClippedUnit

LEARNING_RATE, MOMENTUM, BOUND = 1e-3, 0.9, 1.0
OPACUS_MODES = ("hooks", "functorch", "ew", "ghost")

Step = Callable[[], object]


@dataclass(frozen=True)
class PlainTuning:
    """How plain training is sped up: memory format, activations after the following pooling, precision."""

    channels_last: bool = False
    pool_first: bool = False
    precision: str = "fp32"


#: Plain training as users run it, and hand-tuned as a stricter limit (for images only).
PLAIN = {
    "plain": PlainTuning(),
    "plain-channels-last": PlainTuning(channels_last=True),
    "plain-pool-first": PlainTuning(pool_first=True),
    "plain-tuned": PlainTuning(channels_last=True, pool_first=True),
    "plain-bf16": PlainTuning(precision="bf16"),
    "plain-tf32": PlainTuning(precision="tf32"),
}


def fresh_network(workload: Workload, device: str = "cpu") -> nn.Module:
    torch.manual_seed(0)
    return workload.network().to(device)


def optimizer_of(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(network.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)


def plain_step(tuning: PlainTuning, workload: Workload, size: int, device: str = "cpu") -> Step:
    network, (x, y) = fresh_network(workload, device), workload.batch(size, device)
    order: AbstractContextManager[object] = nullcontext()
    if tuning.channels_last:
        network, x = network.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    moved = pooling_of(lambda: network(x[:2]))[1] if tuning.pool_first else frozenset()
    optimizer, loss_fn, precision = optimizer_of(network), workload.loss(), PRECISIONS[tuning.precision]
    half = precision.autocast is not None

    def step() -> None:
        optimizer.zero_grad()
        with precision.of_products():
            autocast = torch.autocast(torch.device(device).type, precision.autocast, enabled=half)
            with PoolFirst(moved) if tuning.pool_first else order, autocast:
                loss = loss_fn(network(x), y)
            loss.backward()
        optimizer.step()

    return step


def graphed_plain_step(workload: Workload, size: int, device: str = "cuda") -> Step:
    """A plain step as one CUDA graph: a stricter limit of what a GPU can do."""
    network, (x, y) = fresh_network(workload, device), workload.batch(size, device)
    optimizer, loss_fn, graph = optimizer_of(network), workload.loss(), torch.cuda.CUDAGraph()

    def step() -> None:
        optimizer.zero_grad(set_to_none=False)
        loss_fn(network(x), y).backward()
        optimizer.step()

    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(beside)
    with torch.cuda.graph(graph):
        step()

    def replay(held: Step = step) -> None:  # the graph reads and writes the tensors of the step
        del held
        graph.replay()

    return replay


def engine_step(name: str, workload: Workload, size: int, device: str = "cpu") -> Step:
    """A step of one of our engines."""
    return private_step(name, workload, size, device=device).step


class PrivateStep(NamedTuple):
    """A step, the engine in it, and why it is that engine."""

    step: Step
    engine: Engine
    reason: str


class Unguarded:
    """Takes the place of the guard, which compares the weights between steps."""

    def __init__(self, network: nn.Module) -> None:
        self.parameters = trainable_parameters(network)

    @contextmanager
    def update(self, step: int) -> Iterator[None]:
        del step
        yield
        for parameter in self.parameters.values():
            parameter.grad = None


def private_step(
    name: str,
    workload: Workload,
    size: int,
    reuse: bool = True,
    *,
    device: str = "cpu",
    noise: NoiseMechanism | None = None,
    groups: int | None = None,
    **options: Any,
) -> PrivateStep:
    """A step of one of our engines, and the engine.

    Args:
        name: An engine, or ``"auto"`` for the default engine of this network.
        workload: The workload.
        size: Examples in the batch.
        reuse: Whether the flat sum is reused from step to step, as in training.
        device: Device to train on.
        noise: The mechanism; default: ``Gaussian``.
        groups: Number of micro-batches that are clipped as wholes; None: each example is clipped.
        options: Additional arguments of the engine.
    """
    network, (x, y) = fresh_network(workload, device), workload.batch(size, device)
    optimizer, loss_fn = optimizer_of(network), workload.loss()
    unit = ClippedUnit(1, size) if groups is None else ClippedUnit(size // groups, groups)
    batch = Batch(x, y) if groups is None else Batch(x, y, torch.arange(size, device=device) % groups, groups)
    if name == "auto":
        choice = choose_engine(name, network, loss_fn, unit, Batch(x[:2], y[:2]), options=options)
        engine, reason = choice.engine, choice.reason
    else:
        engine, reason = ENGINES.create(name, unit, **options), f"engine {name!r} was asked for"
    clip, numbers, layout = Fixed(), itertools.count(), FlatLayout.of(network)
    noise = Gaussian(initial_noise_multiplier=1.0) if noise is None else noise
    clip.start(BOUND)
    total = layout.zeros(layout.size)
    plan: Any = SimpleNamespace(noise=noise, unit=unit)
    guard: Any = Unguarded(network)
    update = Update(optimizer, plan, guard, layout, total, UpdateGraph(engine.cuda_graphs))
    unread: list[Tally] = []

    def step() -> None:
        summed = engine.clipped_sum(network, loss_fn, batch, clip, total if reuse else None)
        if unread:
            unread.pop().read()  # as training does before its release
        unread.append(summed.tally)
        update(summed, next(numbers))

    return PrivateStep(step, engine, reason)


def opacus_step(mode: str, workload: Workload, size: int, device: str = "cpu") -> Step:
    """A step of Opacus on the workload's network, in a form that Opacus supports.

    Raises:
        AssertionError: That form computes a different function.
    """
    from opacus import PrivacyEngine
    from torch.utils.data import DataLoader, TensorDataset

    given, (x, y) = fresh_network(workload).train(), workload.batch(size)
    network = for_opacus(given)
    require_equal(given, network, x[:4])
    network, x, y = network.to(device), x.to(device), y.to(device)
    made = PrivacyEngine().make_private(
        module=network,
        optimizer=optimizer_of(network),
        criterion=workload.loss(),
        data_loader=DataLoader(TensorDataset(x, y), batch_size=size),
        noise_multiplier=1.0,
        max_grad_norm=BOUND,
        poisson_sampling=False,
        grad_sample_mode=mode,
    )
    private, optimizer = made[0], made[1]
    criterion = made[2] if mode == "ghost" else workload.loss()

    def step() -> None:
        optimizer.zero_grad()
        criterion(private(x), y).backward()
        optimizer.step()

    return step


def build(name: str, workload: Workload, size: int, device: str = "cpu") -> Step:
    """The step with this name: one of ``PLAIN``, an engine, or ``opacus-`` with a mode."""
    if name in PLAIN:
        return plain_step(PLAIN[name], workload, size, device)
    if name.startswith("opacus-"):
        return opacus_step(name.removeprefix("opacus-"), workload, size, device)
    return engine_step(name, workload, size, device)


def peak_mib(name: str, workload: Workload, size: int, step: Step, device: str = "cpu") -> float:
    """Peak MiB of the tensors made by a step, including gradients and everything that engines keep."""
    if name not in ENGINES:
        return peak_bytes(torch.device(device), step) / 2**20
    step, engine, _ = private_step(name, workload, size, reuse=False, device=device)
    return (peak_bytes(torch.device(device), step) + engine.held_bytes) / 2**20


def makes_sense(name: str, workload: Workload) -> bool:
    """Whether a row can differ from that of plain training; the memory format only matters for images."""
    return (
        name not in PLAIN or not (PLAIN[name].channels_last or PLAIN[name].pool_first) or workload.inputs(1).dim() == 4
    )


#: Clocks: wall time, or CPU time of this process (all its threads together).
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def timed(step: Step, at_least: float, clock: Callable[[], float]) -> float:
    """Seconds per step, over as many steps as needed to take ``at_least`` seconds."""
    count, start = 0, _finished(clock)
    while count == 0 or clock() - start < at_least:
        step()
        count += 1
    return (_finished(clock) - start) / count


def _finished(clock: Callable[[], float]) -> float:
    """The time after the GPU, if one is in use, has finished its work."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return clock()
