"""The sections of ``benchmarks/cuda.py``: each runs in a separate process, within a time limit."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # the parent must not open CUDA, because it forks

import torch
from cuda_fits import fit_section, train_section
from cuda_report import Record, Report
from cuda_tests import tests_section
from device_measures import finish, held_bytes, launches, milliseconds, on_gpu, peak_bytes_of, steps_for
from machine import description, gpu
from steps import PLAIN, Step, build, graphed_plain_step, plain_step, private_step
from workloads import WORKLOADS, Workload

RESULTS = Path(__file__).parent / "results" / "cuda.md"

#: Shares of a section's time after which no further row and no further round is started.
LAST_ROW, LAST_ROUND = 0.6, 0.8

NOISE_SIZES = (61_684, 11_200_000, 124_000_000)


@dataclass(frozen=True)
class Task:
    """Instructions for a section.

    Args:
        device: Device to measure on.
        quick: Only check that everything runs.
        seconds: Time limit.
        raw: Folder for logs, or None.
        emit: Function that receives each record.
    """

    device: str
    quick: bool
    seconds: float
    raw: Path | None
    emit: Callable[[Record], None]
    begun: float

    def over(self, part: float = 1.0) -> bool:
        """Whether this share of the time has passed."""
        return time.monotonic() - self.begun > part * self.seconds


@dataclass(frozen=True)
class Section:
    """A section of the page: its name, its share of the minutes, and its function."""

    name: str
    share: float
    run: Callable[[Task], None]


def auto_step(workload: Workload, size: int, device: str, note: Callable[[str, str], None], **options: Any) -> Step:
    """A step of the default engine; ``note`` receives the reason for the choice, and the formulas once known."""
    made = private_step("auto", workload, size, device=device, **options)
    made.step()
    note(made.reason, made.engine.explain())
    return made.step


def rows(
    workload: Workload, size: int, device: str, note: Callable[[str, str, str], None]
) -> dict[str, Callable[[], Step]]:
    """The function that makes the step of each row; the most important rows come first."""

    def ours(name: str, **options: Any) -> Callable[[], Step]:
        return partial(auto_step, workload, size, device, partial(note, name), **options)

    found: dict[str, Callable[[], Step]] = {
        "plain": partial(plain_step, PLAIN["plain"], workload, size, device),
        "dpmodel": ours("dpmodel"),
        "plain-graph": partial(graphed_plain_step, workload, size, device),
        "dpmodel-eager": ours("dpmodel-eager", cuda_graphs=False),
        "opacus-hooks": partial(build, "opacus-hooks", workload, size, device),
        "plain-bf16": partial(plain_step, PLAIN["plain-bf16"], workload, size, device),
        "dpmodel-bf16": ours("dpmodel-bf16", precision="bf16"),
        "plain-tf32": partial(plain_step, PLAIN["plain-tf32"], workload, size, device),
        "dpmodel-tf32": ours("dpmodel-tf32", precision="tf32"),
        "opacus-ghost": partial(build, "opacus-ghost", workload, size, device),
    }
    return found


def steps_section(workload: Workload, size: int, task: Task) -> None:
    """Make the rows, time them in interleaved rounds, and count their kernels."""
    size = max(2, size // 256) if task.quick else size
    place = {"section": workload.name, "size": size}

    def note(row: str, why: str, plans: str) -> None:
        task.emit({"kind": "engine", **place, "row": row, "why": why, "plans": plans.splitlines()})

    steps: dict[str, ReadyStep] = {}
    for order, (name, make) in enumerate(rows(workload, size, task.device, note).items()):
        try:
            if task.over(LAST_ROW):
                raise TimeoutError("no time was left")
            steps[name] = _ready(make, task, order)
        except Exception as error:
            task.emit({"kind": "step", **place, "row": name, "order": order, "why": reason(error)})
        if on_gpu(task.device):
            torch.cuda.empty_cache()
    _take_turns(steps, place, task)
    _count_launches(steps, place, task)


def _count_launches(steps: dict[str, ReadyStep], place: Record, task: Task) -> None:
    try:
        for name, ready in steps.items():
            found = None if task.over(0.95) else launches(ready.step, task.device)
            if found is not None:
                task.emit({"kind": "launches", **place, "row": name, **asdict(found)})
    except Exception as error:  # profilers fail in many ways, and the times are already measured
        task.emit({"kind": "failed", **place, "row": "launches", "why": f"launches: {reason(error)}"})


def _take_turns(steps: dict[str, ReadyStep], place: Record, task: Task) -> None:
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(1 if task.quick else 5):
        for name, ready in steps.items():
            times[name].append(milliseconds(ready.step, ready.count, task.device))
            found = {"row": name, "order": ready.order, "ms": times[name], "peak_mib": ready.peak_mib}
            task.emit({"kind": "step", **place, **found})
        if task.over(LAST_ROUND):
            return


@dataclass(frozen=True)
class ReadyStep:
    """A warm step, the number of steps per turn, its peak memory in MiB, and its position among the rows."""

    step: Step
    count: int
    peak_mib: float | None
    order: int


def _ready(make: Callable[[], Step], task: Task, order: int) -> ReadyStep:
    before = held_bytes(task.device)
    step = make()
    for _ in range(1 if task.quick else 3):
        step()
    finish(task.device)
    peak = peak_bytes_of(step, task.device, before)
    count = 1 if task.quick else steps_for(0.15, milliseconds(step, 1, task.device))
    return ReadyStep(step, count, None if peak is None else peak / 2**20, order)


def noise_section(task: Task) -> None:
    """The noise of dpmodel compared with torch's, added to vectors of the sizes of LeNet5, ResNet18 and GPT-2 small."""
    from mechanisms.engines import ClippedSum
    from mechanisms.noise import Gaussian

    mechanism = Gaussian(initial_noise_multiplier=1.0)
    for size in NOISE_SIZES:
        size = size // 1000 if task.quick else size
        vector = torch.zeros(size, device=task.device)
        summed = ClippedSum(vector, torch.zeros(0, 1), 1.0, 1.0)
        ways: dict[str, Callable[[], object]] = {
            "ours": partial(mechanism.add, summed, 0),
            "randn": lambda: vector.add_(torch.randn(len(vector), device=vector.device)),  # noqa: B023 - used here
        }
        counts = {}
        for name, way in ways.items():
            way()
            counts[name] = steps_for(0.1, milliseconds(way, 1, task.device))
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(1 if task.quick else 5):
            for name, way in ways.items():
                found[name].append(milliseconds(way, counts[name], task.device))
        middle = {name: sorted(times)[len(times) // 2] for name, times in found.items()}
        task.emit({"kind": "noise", "section": "noise", "size": size, **middle})


def reason(error: BaseException) -> str:
    """Type and first line of the error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


def sections() -> list[Section]:
    """All sections in the order in which they run; a share is of the time left when the section begins."""
    shares = {
        "lenet5": 1.0,
        "cifar-cnn": 1.2,
        "resnet18-gn": 1.5,
        "text-encoder": 1.2,
        "vit-b16": 2.0,
        "gpt2-small": 2.2,
    }
    steps = [
        Section(workload.name, shares.get(workload.name, 1.0), partial(steps_section, workload, size))
        for workload in WORKLOADS.values()
        for size in workload.gpu_batch_sizes
    ]
    return [
        Section("tests", 9.0, tests_section),
        Section("noise", 0.4, noise_section),
        *steps,
        Section("fit", 1.0, fit_section),
        Section("train", 1.2, train_section),
    ]


class Budget:
    """Divides the remaining time among the sections.

    Args:
        seconds: Total time.
        chosen: The sections that will run.
    """

    def __init__(self, seconds: float, chosen: list[Section]) -> None:
        self.end, self.ahead = time.monotonic() + seconds, [section.share for section in chosen]

    def take(self) -> float:
        """Seconds for the next section, including time that earlier sections did not use."""
        left, parts = max(0.0, self.end - time.monotonic()), sum(self.ahead)
        return left * self.ahead.pop(0) / parts


def run_apart(section: Section, options: argparse.Namespace, seconds: float, take: Callable[[Record], None]) -> None:
    """Run a section in a separate process and pass its records on; the process is stopped at its time limit."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_inside, args=(section, options, 0.9 * seconds, theirs), daemon=False)
    begun = time.monotonic()
    process.start()
    theirs.close()
    why = None
    try:
        while True:
            if not ours.poll(max(0.0, begun + seconds - time.monotonic())):
                why = f"ended at its limit of {seconds:.0f} s"
                break
            take(ours.recv())
    except EOFError:
        process.join(5)
        if process.exitcode:
            why = f"its process ended with {process.exitcode}"
    finally:
        if process.is_alive():
            process.kill()
        process.join()
    if why:
        take({"kind": "failed", "section": section.name, "row": "process", "why": why})


def _inside(section: Section, options: argparse.Namespace, seconds: float, pipe: Connection) -> None:
    warnings.filterwarnings("ignore")
    task = Task(options.device, options.quick, seconds, options.raw, pipe.send, time.monotonic())
    try:
        if section.name != "tests":
            card = f"{gpu()}; " if on_gpu(options.device) else ""
            task.emit({"kind": "machine", "text": f"{card}{description('opacus', 'triton', 'numpy')}"})
        section.run(task)
    except Exception as error:
        traceback.print_exc()
        task.emit({"kind": "failed", "section": section.name, "why": reason(error)})
    finally:
        pipe.close()
        sys.stdout.flush()


def options_from_command_line(description_of_script: str) -> argparse.Namespace:
    names = list(dict.fromkeys(section.name for section in sections()))
    parser = argparse.ArgumentParser(
        description=description_of_script, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="time limit for all sections together")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="SECTION", help=", ".join(names))
    parser.add_argument("--device", default="cuda", help="use cpu to try out the script")
    parser.add_argument("--quick", action="store_true", help="small batches, one round: only check that it runs")
    parser.add_argument("--output", type=Path, help=f"the page; default: {RESULTS.name} in results/, unless --quick")
    parser.add_argument("--raw", type=Path, help="folder for the records (JSON lines) and the log of the tests")
    return parser.parse_args()


def main(description_of_script: str) -> None:
    """Run the chosen sections and write the page."""
    begun, options = time.monotonic(), options_from_command_line(description_of_script)
    output = options.output or (None if options.quick else RESULTS)
    for path in (output and output.parent, options.raw):
        if path:
            path.mkdir(parents=True, exist_ok=True)
    _import_ahead()
    report = Report(f"PYTHONPATH=. python benchmarks/cuda.py {' '.join(sys.argv[1:])}".rstrip())
    log = (options.raw / "records.jsonl").open("w") if options.raw else None

    def take(record: Record) -> None:
        report.add(record)
        line = json.dumps(record)
        if record["kind"] in ("failed", "noise", "fit") or (record["kind"] == "step" and "why" in record):
            print(f"{time.monotonic() - begun:6.1f} s  {line[:1500]}", flush=True)
        if log:
            log.write(line + "\n")
            log.flush()
        if output:
            output.write_text(report.text(), encoding="utf-8")

    chosen = [section for section in sections() if section.name in options.only]
    budget = Budget(60 * options.minutes - (time.monotonic() - begun) - 3, chosen)
    for section in chosen:
        seconds = budget.take()
        print(f"{time.monotonic() - begun:6.1f} s  {section.name}: at most {seconds:.0f} s", flush=True)
        run_apart(section, options, seconds, take)
    print(report.brief())


def _import_ahead() -> None:
    """Import once what every section needs; the processes of the sections are copies of this one."""
    import torchvision  # noqa: F401

    import dpmodel  # noqa: F401

    try:
        import opacus  # noqa: F401
    except Exception as error:
        print(f"without opacus: {reason(error)}", flush=True)
