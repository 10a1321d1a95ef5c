"""Time of one private training step by engine, compared with plain training and Opacus in the same process.

    python benchmarks/engines.py --model lenet5 --batch 256 --engines plain bookkeeping vmap opacus-hooks opacus-ghost
    python benchmarks/engines.py --all --output benchmarks/results/engines.md
    python benchmarks/engines.py --model lenet5 --batch 256 --profile

A step is: forward, backward, clip, noise, SGD with momentum. Rounds are interleaved (A B C A B C ...); "x plain" is the
median over rounds of plain time / engine time in the same round, so that a slow moment of the machine affects all rows
alike. Still, a busy machine makes wall time worthless (two OpenMP threads on a busy core wait for each other): measure
on an idle machine, or with `--threads 1 --clock cpu`.

There are also hand-tuned plain rows (`plain-channels-last`, `plain-pool-first`; `plain-tuned` is both): "x best plain"
is relative to the fastest of them. Opacus rows need `pip install opacus`; without it they show why they failed.
`--profile` shows where the time of a step of our engine goes instead.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from pathlib import Path

import torch
from machine import description
from peers import changes_for_opacus
from step_profile import profile
from steps import BOUND, CLOCKS, OPACUS_MODES, PLAIN, Step, build, fresh_network, makes_sense, peak_mib, timed
from torch import nn
from workloads import WORKLOADS, Workload

from mechanisms.clipping import Fixed
from mechanisms.engines import ENGINES, Batch, LoopEngine
from mechanisms.units import ClippedUnit

DEFAULT = (
    *("plain", "plain-channels-last", "plain-pool-first"),
    *("bookkeeping", "vmap"),
    *(f"opacus-{mode}" for mode in OPACUS_MODES),
)
KNOWN = (*PLAIN, *ENGINES.names(), *(f"opacus-{mode}" for mode in OPACUS_MODES))


def error_against_loop(name: str, workload: Workload, device: str = "cpu", size: int = 6) -> float:
    """Largest relative difference to the clipped sum of the one-example loop in float64, on a few examples."""
    network, (x, y) = fresh_network(workload, device), workload.batch(size, device)
    found = _sum_of(name, network, workload.loss(), x, y)
    wide = x.double() if x.is_floating_point() else x
    expected = _sum_of(LoopEngine.name, network.double(), workload.loss(), wide, y)
    return float((found - expected).abs().max() / expected.abs().max())


def _sum_of(name: str, network: nn.Module, loss_fn: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    clip = Fixed()
    clip.start(BOUND)
    engine = ENGINES.create(name, ClippedUnit(1, len(y)))
    found: torch.Tensor = engine.clipped_sum(network, loss_fn, Batch(x, y), clip).flat_grad
    return found


def ready_steps(names: list[str], workload: Workload, size: int, device: str) -> tuple[dict[str, Step], dict[str, str]]:
    """Steps that run, and why the others do not."""
    steps, failed = {}, {}
    for name in names:
        try:
            step = build(name, workload, size, device)
            step()
            step()
        except Exception as error:
            lines = str(error).strip().splitlines()
            failed[name] = f"{type(error).__name__}: {lines[0] if lines else ''}".replace("|", "/")
        else:
            steps[name] = step
    return steps, failed


def measure(workload: Workload, size: int, names: list[str], options: argparse.Namespace) -> list[str]:
    """Rows of the result table."""
    device, clock = options.device, CLOCKS[options.clock]
    steps, failed = ready_steps([name for name in names if makes_sense(name, workload)], workload, size, device)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(options.rounds):
        for name, step in steps.items():
            times[name].append(timed(step, options.seconds, clock))
    best_plain = _fastest({name: found for name, found in times.items() if name in PLAIN})
    best_peer = _fastest({name: found for name, found in times.items() if name.startswith("opacus-")})
    rows = []
    for name, values in times.items():
        ratios = " | ".join(_ratio(reference, values) for reference in (times.get("plain"), best_plain, best_peer))
        middle = statistics.median(values)
        error = f"{error_against_loop(name, workload, device):.0e}" if name in ENGINES else ""
        rows.append(
            f"| {workload.name} ({size}) | {name} | {1e3 * middle:.1f} | {size / middle:,.0f} | {ratios} | "
            f"{_peak_mib(name, workload, size, steps[name], device)} | {error} |"
        )
    return [
        *rows,
        *(f"| {workload.name} ({size}) | {name} | failed: {why} | | | | | | |" for name, why in failed.items()),
    ]


def _fastest(times: dict[str, list[float]]) -> list[float] | None:
    return min(times.values(), key=statistics.median, default=None)


def _ratio(reference: list[float] | None, values: list[float]) -> str:
    if reference is None:
        return "n/a"
    return f"{statistics.median(a / b for a, b in zip(reference, values, strict=True)):.2f}"


def _peak_mib(name: str, workload: Workload, size: int, step: Step, device: str) -> str:
    try:
        return f"{peak_mib(name, workload, size, step, device):.0f}"
    except Exception:  # some peers cannot run under a dispatch mode
        return "n/a"


def heading(options: argparse.Namespace, chosen: list[Workload]) -> list[str]:
    """Machine, versions, date and notes on the table."""
    names = options.engines
    rounds = f"{options.rounds} round{'s' * (options.rounds != 1)}"
    sentences = [
        f"{rounds}, alternating, at least {options.seconds:g} s per row and round, {options.clock} time; ratios are",
        "medians over rounds of the times in one round. A step is forward, backward, clip, noise and SGD with",
        "momentum; plain rows have neither clip nor noise. Our engines draw their noise from the secure generator.",
        "Peak memory is the most that tensors made by a step hold at one time, including gradients but neither weights",
        "nor momentum. Errors are relative to the one-example loop in float64.",
    ]
    if any(name in PLAIN and name != "plain" for name in names):
        sentences += [
            "Tuned plain rows (images only): `plain-channels-last` stores images and weights with the channels last,",
            "`plain-pool-first` applies activations after the pooling and our 2 x 2 pooling, `plain-tuned` does both.",
        ]
    changed = {workload.name: changes_for_opacus(workload) for workload in chosen}
    if any(name.startswith("opacus-") for name in names) and any(changed.values()):
        what = "; ".join(f"{name}: {words}" for name, words in changed.items() if words)
        sentences += [f"Opacus runs on equivalent networks (same weights, outputs compared before timing). {what}."]
    return [
        "# One private training step, engine by engine",
        "",
        description(*(["opacus"] if any(name.startswith("opacus-") for name in names) else [])),
        *sentences,
        "",
        "| workload (batch) | engine | ms/step | examples/s | x plain | x best plain | x best Opacus | peak MiB "
        "| max error |",
        "|---|---|---|---|---|---|---|---|---|",
    ]


def profile_heading(options: argparse.Namespace) -> list[str]:
    return [
        "## Where the time of a step goes",
        "",
        description(),
        f"Wall time, medians over all steps of {options.rounds} rounds of at least {options.seconds:g} s;",
        "plain and private steps alternate. The chunks of one batch are added up.",
        "",
    ]


def options_from_command_line() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=sorted(WORKLOADS), help="one workload or several")
    parser.add_argument("--batch", type=int, help="batch size; default: those of the workload")
    parser.add_argument("--all", action="store_true", help="all workloads of the CPU table")
    parser.add_argument("--engines", nargs="+", choices=KNOWN, default=list(DEFAULT), metavar="ROW", help=str(KNOWN))
    parser.add_argument("--profile", action="store_true", help="profile a step of our engine instead of the table")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.3, help="least time per row and round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall", help="on a busy machine: cpu, --threads 1")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; for the full GPU table, use benchmarks/cuda.py")
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    options = parser.parse_args()
    if not options.all and options.model is None:
        parser.error("choose a workload with --model, or use --all")
    if options.profile and options.device != "cpu":
        parser.error("--profile only measures the CPU; omit --device")
    if options.profile and options.clock != "wall":
        parser.error("--profile measures wall time; omit --clock")
    return options


def _sizes(workload: Workload, options: argparse.Namespace) -> tuple[int, ...]:
    if options.batch:
        return (options.batch,)
    return workload.batch_sizes if options.device == "cpu" else workload.gpu_batch_sizes


def main() -> None:
    options = options_from_command_line()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    chosen = (
        [workload for workload in WORKLOADS.values() if workload.batch_sizes]
        if options.all
        else [WORKLOADS[name] for name in options.model]
    )
    lines = profile_heading(options) if options.profile else heading(options, chosen)
    print("\n".join(lines), flush=True)
    for workload in chosen:
        for size in _sizes(workload, options):
            if options.profile:
                rows = profile(workload, size, options.rounds, options.seconds)
            else:
                rows = measure(workload, size, options.engines, options)
            print("\n".join(rows), flush=True)
            lines += rows
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
