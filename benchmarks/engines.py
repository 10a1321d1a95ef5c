"""Time of one private training step, engine by engine, beside plain training and Opacus, in turns in one process.

    python benchmarks/engines.py --model lenet5 --batch 256 --engines plain bookkeeping vmap opacus-hooks opacus-ghost
    python benchmarks/engines.py --all --output benchmarks/results/engines.md

A step is: forward, backward, clip, noise, SGD with momentum. Rounds go A B C A B C ...; "x plain" is the median over
rounds of plain time / engine time in the same round, so that a slow moment of the machine hits all alike. Still, a busy
machine makes wall time worthless (two OpenMP threads on a busy core wait for each other): measure on an idle one, or
with `--threads 1 --clock cpu`.
Opacus rows need `pip install opacus` and are left out without it.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from workloads import WORKLOADS, Workload

from mechanisms.clipping import Fixed
from mechanisms.engines import ENGINES, Batch, FlatLayout, LoopEngine
from mechanisms.engines.memory import peak_bytes
from mechanisms.noise import Gaussian
from mechanisms.units import ClippedUnit

OPACUS_MODES = ("hooks", "functorch", "ew", "ghost")
DEFAULT = ("plain", "bookkeeping", "vmap", *(f"opacus-{mode}" for mode in OPACUS_MODES))
LEARNING_RATE, MOMENTUM, BOUND = 1e-3, 0.9, 1.0

Step = Callable[[], object]


def fresh_network(workload: Workload) -> nn.Module:
    torch.manual_seed(0)
    return workload.network()


def optimizer_of(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(network.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)


def plain_step(workload: Workload, size: int) -> Step:
    network, (x, y) = fresh_network(workload), workload.batch(size)
    optimizer = optimizer_of(network)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimizer.step()

    return step


def tuned_step(workload: Workload, size: int) -> Step:
    """Plain training with channels_last, the stricter limit for convolutions."""
    network, (x, y) = fresh_network(workload).to(memory_format=torch.channels_last), workload.batch(size)
    x = x.to(memory_format=torch.channels_last) if x.dim() == 4 else x
    optimizer = optimizer_of(network)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimizer.step()

    return step


def engine_step(name: str, workload: Workload, size: int) -> Step:
    network, (x, y) = fresh_network(workload), workload.batch(size)
    optimizer, engine = optimizer_of(network), ENGINES.create(name, ClippedUnit(1, size))
    parameters, layout = list(network.parameters()), FlatLayout.of(network)
    noise, clip, loss_fn = Gaussian(initial_noise_multiplier=1.0), Fixed(), nn.CrossEntropyLoss()
    clip.start(BOUND)
    total = layout.zeros(layout.size)

    def step() -> None:
        noisy = noise.add(engine.clipped_sum(network, loss_fn, Batch(x, y), clip, total), 0)
        for parameter, gradient in zip(parameters, layout.views(noisy.div_(size)), strict=True):
            parameter.grad = gradient
        optimizer.step()

    return step


def opacus_step(mode: str, workload: Workload, size: int) -> Step:
    from opacus import PrivacyEngine
    from torch.utils.data import DataLoader, TensorDataset

    network, (x, y) = fresh_network(workload).train(), workload.batch(size)
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
    if name.startswith("opacus-"):
        return opacus_step(name.removeprefix("opacus-"), workload, size)
    if name == "plain":
        return plain_step(workload, size)
    return tuned_step(workload, size) if name == "plain-channels-last" else engine_step(name, workload, size)


def error_against_loop(name: str, workload: Workload, size: int = 6) -> float:
    """Largest relative difference from the one-example loop's clipped sum in float64, on a few examples."""
    network, (x, y) = fresh_network(workload), workload.batch(size)
    found = _sum_of(name, network, x, y)
    wide = x.double() if x.is_floating_point() else x
    expected = _sum_of(LoopEngine.name, network.double(), wide, y)
    return float((found - expected).abs().max() / expected.abs().max())


def _sum_of(name: str, network: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    clip = Fixed()
    clip.start(BOUND)
    engine = ENGINES.create(name, ClippedUnit(1, len(y)))
    return engine.clipped_sum(network, nn.CrossEntropyLoss(), Batch(x, y), clip).flat_grad


def ready_steps(names: list[str], workload: Workload, size: int) -> tuple[dict[str, Step], dict[str, str]]:
    """Steps that run, and why the others do not."""
    steps, failed = {}, {}
    for name in names:
        try:
            step = build(name, workload, size)
            step()
            step()
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:90] if str(error) else ''}"
        else:
            steps[name] = step
    return steps, failed


#: What is measured: time on the wall, or time that this process was computing (all its threads together).
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def timed(step: Step, at_least: float, clock: Callable[[], float]) -> float:
    """Seconds per step, over as many steps as take ``at_least`` seconds."""
    count, start = 0, clock()
    while count == 0 or clock() - start < at_least:
        step()
        count += 1
    return (clock() - start) / count


def measure(
    workload: Workload, size: int, names: list[str], rounds: int, seconds: float, clock: Callable[[], float]
) -> list[str]:
    """Rows of the result table."""
    steps, failed = ready_steps(names, workload, size)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            times[name].append(timed(step, seconds, clock))
    peers = {name: statistics.median(t) for name, t in times.items() if name.startswith("opacus-")}
    best = min(peers, key=peers.__getitem__) if peers else None
    rows = []
    for name, values in times.items():
        against_plain = _ratio(times.get("plain"), values)
        against_peer = _ratio(times[best], values) if best else "n/a"
        middle = statistics.median(values)
        error = f"{error_against_loop(name, workload):.0e}" if name in ENGINES else ""
        rows.append(
            f"| {workload.name} ({size}) | {name} | {1e3 * middle:.1f} | {size / middle:,.0f} | {against_plain} | "
            f"{against_peer} | {_peak_mib(steps[name])} | {error} |"
        )
    rows += [f"| {workload.name} ({size}) | {name} | failed: {why} | | | | | |" for name, why in failed.items()]
    return rows


def _ratio(reference: list[float] | None, values: list[float]) -> str:
    if reference is None:
        return "n/a"
    return f"{statistics.median(a / b for a, b in zip(reference, values, strict=True)):.2f}"


def _peak_mib(step: Step) -> str:
    try:
        return f"{peak_bytes(torch.device('cpu'), step) / 2**20:.0f}"
    except Exception:  # some peers cannot run under a dispatch mode
        return "n/a"


def heading(rounds: int, seconds: float, clock: str) -> list[str]:
    """Machine, versions, date and how to read the table."""
    versions = [f"torch {torch.__version__}", f"Python {platform.python_version()}"]
    try:
        import opacus
    except ImportError:
        versions.append("without Opacus")
    else:
        versions.append(f"Opacus {opacus.__version__}")
    return [
        "# One private training step, engine by engine",
        "",
        f"{_processor()}, {torch.get_num_threads()} thread(s), float32; {', '.join(versions)}; "
        f"{datetime.datetime.now(datetime.timezone.utc).date()}; load average {os.getloadavg()[0]:.1f} at the start.",
        f"{rounds} rounds in turns, at least {seconds:g} s per engine and round, {clock} time; ratios are medians over",
        "rounds of the times in one round. A step is forward, backward, clip, noise (secure for our engines) and SGD",
        "with momentum. Peak memory is what tensors made by the step hold at most; errors are against the one-example",
        "loop in float64.",
        "",
        "| workload (batch) | engine | ms/step | examples/s | x plain | x best Opacus | peak MiB | max error |",
        "|---|---|---|---|---|---|---|---|",
    ]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(WORKLOADS), help="one workload")
    parser.add_argument("--batch", type=int, help="batch size; default: those of the workload")
    parser.add_argument("--all", action="store_true", help="every workload")
    parser.add_argument("--engines", nargs="+", default=list(DEFAULT), help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.3, help="least time per engine and round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall", help="cpu on a busy machine, --threads 1")
    parser.add_argument("--output", type=Path, help="write the table here as well")
    options = parser.parse_args()
    if not options.all and options.model is None:
        parser.error("name a workload with --model, or ask for --all")
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    lines = heading(options.rounds, options.seconds, options.clock)
    print("\n".join(lines), flush=True)
    for workload in WORKLOADS.values() if options.all else [WORKLOADS[options.model]]:
        for size in [options.batch] if options.batch else workload.batch_sizes:
            rows = measure(workload, size, options.engines, options.rounds, options.seconds, CLOCKS[options.clock])
            print("\n".join(rows), flush=True)
            lines += rows
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
