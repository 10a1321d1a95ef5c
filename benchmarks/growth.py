"""How the cost of plain and private training grows with batch, width, depth, sequence length and data.

    python benchmarks/growth.py
    python benchmarks/growth.py --series batch depth --rounds 3 --no-figure
    python benchmarks/growth.py --redraw

Steps are those of ``engines.py`` (forward, backward, clip, secure noise, SGD with momentum; engine ``bookkeeping``).
The epochs of ``data`` are those of ``epoch.py`` on synthetic images of MNIST's shape, including sampling and fetching.
Plain and private rounds are interleaved (A B A B); a ratio compares the two times of one round. Data loading is also
measured separately, inside the loader's ``batches``. Writes ``benchmarks/results/growth.md`` and
``docs/figures/growth.svg`` and ``.png``; ``--redraw`` only draws the figures again from the table.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import epoch
import torch
from machine import description
from steps import CLOCKS, Step, build, peak_mib, timed
from workloads import WORKLOADS, DeepCNN, TextEncoder, WideCNN, Workload, images, tokens

from dpmodel.data.in_memory import InMemoryDataset
from dpmodel.data.loader import PrivateLoader
from dpmodel.data.synthetic import synthetic

ROOT = Path(__file__).resolve().parents[1]
PLAIN, PRIVATE = "plain", "bookkeeping"
#: Most rounds of epochs; an epoch has many steps, so more are not needed.
MOST_EPOCHS = 3


@dataclass(frozen=True)
class Point:
    """One measured point of a series.

    Args:
        x: Position on the axis.
        plain: Seconds of plain training, one entry per round.
        private: Seconds of private training, one entry per round.
        plain_mib: Peak memory of a plain step; None if not measured.
        private_mib: Peak memory of a private step; None if not measured.
        loading: Seconds of a private epoch spent in the loader, one entry per round; None for steps.
    """

    x: int
    plain: list[float]
    private: list[float]
    plain_mib: float | None = None
    private_mib: float | None = None
    loading: list[float] | None = None

    @property
    def ratios(self) -> list[float]:
        """Plain over private time of each round."""
        return [a / b for a, b in zip(self.plain, self.private, strict=True)]

    @property
    def loading_shares(self) -> list[float]:
        """Share of each epoch spent in the loader."""
        return [a / b for a, b in zip(self.loading or [], self.private, strict=True)]


@dataclass(frozen=True)
class Series:
    """A quantity that grows, and how it is measured.

    Args:
        title: Title of the panel and the table.
        axis: Meaning of x.
        values: Values of x.
        workload: x to network and batch size; None for whole epochs.
    """

    title: str
    axis: str
    values: tuple[int, ...]
    workload: Callable[[int], tuple[Workload, int]] | None = None
    points: list[Point] = field(default_factory=list)


def all_series() -> dict[str, Series]:
    return {
        "batch": Series(
            "Batch size (LeNet5)",
            "examples per step",
            tuple(2**k for k in range(5, 13)),
            lambda size: (WORKLOADS["lenet5"], size),
        ),
        "width": Series(
            "Width (MNIST CNN, batch 64)",
            "times the channels",
            (1, 2, 4, 8),
            lambda factor: (Workload("wide", lambda: WideCNN(factor), images(1, 28, 28), ()), 64),
        ),
        "depth": Series(
            "Depth (16 channels, batch 64)",
            "convolutions",
            (2, 4, 8, 16, 32),
            lambda depth: (Workload("deep", lambda: DeepCNN(depth), images(1, 16, 16), ()), 64),
        ),
        "length": Series(
            "Sequence length (encoder, batch 16)",
            "tokens per example",
            (16, 32, 64, 128, 256),
            lambda length: (Workload("text", lambda: TextEncoder(length=length), tokens(length), (), classes=2), 16),
        ),
        "data": Series(f"Data (epochs of LeNet5, batch {epoch.BATCH})", "examples", (1_024, 4_096, 16_384, 59_904)),
    }


def measured_steps(series: Series, rounds: int, seconds: float, clock: Callable[[], float]) -> Iterator[Point]:
    assert series.workload is not None
    for x in series.values:
        workload, size = series.workload(x)
        steps: dict[str, Step] = {name: build(name, workload, size) for name in (PLAIN, PRIVATE)}
        times: dict[str, list[float]] = {name: [] for name in steps}
        for warm_up in [*steps.values()] * 2:
            warm_up()
        for _ in range(rounds):
            for name, step in steps.items():
                times[name].append(timed(step, seconds, clock))
        plain_mib, private_mib = (peak_mib(name, workload, size, step) for name, step in steps.items())
        yield Point(x, times[PLAIN], times[PRIVATE], plain_mib, private_mib)


def measured_epochs(series: Series, rounds: int, clock: Callable[[], float]) -> Iterator[Point]:
    for count in series.values:  # whole batches, so that both kinds of training see as many examples
        raw = synthetic(count, 1, shape=(1, 32, 32))
        assert isinstance(raw.x_train, torch.Tensor)
        data = InMemoryDataset(raw.x_train, raw.y_train, mean=0.5, std=0.5)
        epochs = {"plain": epoch.plain(data), "private": epoch.dpmodel(data)}
        found: dict[str, list[float]] = {"plain": [], "private": [], "loading": []}
        for number in range(1 + min(rounds, MOST_EPOCHS)):
            for name, work in epochs.items():
                loading: list[float] = []
                begun = clock()
                with contextlib.redirect_stdout(io.StringIO()), timed_loading(loading, clock):
                    work()
                if number:  # the first is to warm up
                    found[name].append(clock() - begun)
                    found["loading"] += [sum(loading)] if name == "private" else []
        yield Point(count, found["plain"], found["private"], loading=found["loading"])


@contextlib.contextmanager
def timed_loading(seconds: list[float], clock: Callable[[], float]) -> Iterator[None]:
    """In the block, append the seconds that each batch of a ``PrivateLoader`` takes (sample, fetch, convert)."""
    batches = PrivateLoader.batches

    def watched(*args: Any) -> Iterator[Any]:
        source = batches(*args)
        while True:
            begun = clock()
            try:
                pair = next(source)
            except StopIteration:
                return
            seconds.append(clock() - begun)
            yield pair

    with patch.object(PrivateLoader, "batches", watched):
        yield


def table(series: Series) -> list[str]:
    unit, factor = ("s", 1.0) if series.workload is None else ("ms", 1e3)
    last = "loading s | share of loading" if series.workload is None else "plain MiB | dpmodel MiB"
    rows = [
        f"## {series.title}",
        "",
        f"| {series.axis} | plain {unit} | dpmodel {unit} | x plain | rounds between | {last} |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for point in series.points:
        times = " | ".join(f"{factor * statistics.median(t):.4g}" for t in (point.plain, point.private))
        spread = f"{statistics.median(point.ratios):.2f} | {min(point.ratios):.2f} to {max(point.ratios):.2f}"
        rows.append(f"| {point.x:,} | {times} | {spread} | {_last_columns(point)} |")
    return [*rows, "", *_far_end(series), ""]


def _last_columns(point: Point) -> str:
    if point.loading is None:
        return f"{point.plain_mib:.1f} | {point.private_mib:.1f}"
    return f"{statistics.median(point.loading):.4g} | {statistics.median(point.loading_shares):.1%}"


def _far_end(series: Series) -> list[str]:
    """The power of x with which the time grows between the last two points."""
    if len(series.points) < 2:
        return []
    before, after = series.points[-2:]
    powers = [
        math.log(statistics.median(b) / statistics.median(a)) / math.log(after.x / before.x)
        for a, b in ((before.plain, after.plain), (before.private, after.private))
    ]
    return [
        "Between the last two rows the time grows with this power of the first column: "
        f"plain {powers[0]:.2f}, dpmodel {powers[1]:.2f}."
    ]


def read_table(text: str) -> dict[str, Series]:
    """The series whose medians are in the text of ``growth.md``."""
    chosen = {}
    for name, series in all_series().items():
        _, found, section = text.partition(f"## {series.title}\n")
        rows = [line.strip("| ").split(" | ") for line in section.partition("\n## ")[0].splitlines() if "|" in line]
        for row in rows[2:]:
            x, plain, private = (float(cell.replace(",", "")) for cell in row[:3])
            unit = 1.0 if series.workload is None else 1e3
            memory = (None, None) if series.workload is None else (float(row[5]), float(row[6]))
            series.points.append(Point(int(x), [plain / unit], [private / unit], *memory))
        if found:
            chosen[name] = series
    return chosen


def heading(options: argparse.Namespace) -> list[str]:
    rounds = f"{options.rounds} round{'s' * (options.rounds != 1)}"
    return [
        "# How the cost of private training grows",
        "",
        description(),
        f"Plain and private steps alternate: {rounds} of at least {options.seconds:g} s each (whole epochs: "
        f"{min(options.rounds, MOST_EPOCHS)}), {options.clock} time, medians; x plain is",
        "plain time over private time of the same round. A private step is forward, backward, clip, secure noise and",
        "SGD with momentum, engine `bookkeeping`. Peak memory is the most that tensors made by a step hold at once,",
        "including gradients. Loading is the time to draw, fetch and convert the batches of an epoch.",
        "",
    ]


def options_from_command_line() -> argparse.Namespace:
    names = list(all_series())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", nargs="+", choices=names, default=names)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.1, help="least time per point, round and kind of training")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall", help="on a busy machine: cpu, --threads 1")
    parser.add_argument("--no-figure", action="store_true", help="do not draw the figure")
    parser.add_argument("--redraw", action="store_true", help="only draw the figure of the table in --output again")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "growth.md")
    parser.add_argument("--figures", type=Path, default=ROOT / "docs" / "figures")
    return parser.parse_args()


def draw_figure(chosen: dict[str, Series], folder: Path) -> None:
    from growth_figure import draw, save

    save(draw(chosen), folder)


def main() -> None:
    options = options_from_command_line()
    if options.redraw:
        draw_figure(read_table(options.output.read_text(encoding="utf-8")), options.figures)
        return
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    clock, begun = CLOCKS[options.clock], time.perf_counter()
    chosen = {name: series for name, series in all_series().items() if name in options.series}
    lines = heading(options)
    print("\n".join(lines), flush=True)
    for series in chosen.values():
        if series.workload is None:
            series.points.extend(measured_epochs(series, options.rounds, clock))
        else:
            series.points.extend(measured_steps(series, options.rounds, options.seconds, clock))
        rows = table(series)
        print("\n".join(rows), flush=True)
        lines += rows
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    if not options.no_figure:
        draw_figure(chosen, options.figures)
    print(f"{time.perf_counter() - begun:.0f} s in all")


if __name__ == "__main__":
    main()
