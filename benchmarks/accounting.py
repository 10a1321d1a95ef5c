"""Speed and tightness of the accountants, compared with dp-accounting and Opacus: ``python benchmarks/accounting.py``.

Each peer runs in the same process on the same schedule. A peer that would take hours for 10,000 distinct multipliers
gets only the first ``--peer-steps`` of them (default 100); its time is scaled up linearly, as noted in the table.
Writes ``benchmarks/results/accounting.md``.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from monitors import (
    GaussianEvent,
    Ledger,
    PLDAccountant,
    PoissonSampledEvent,
    RDPAccountant,
    calibrate_noise_multiplier,
)
from monitors.schedules import decayed

RATE, DELTA, STEPS = 512 / 60000, 1e-5, 10_000
CONSTANT = (1.23, 4680)
DECAY = ("Time", 1e-4)
INITIAL = 2.27


def decayed_multipliers(initial: float, steps: int = STEPS) -> list[float]:
    schedule = decayed(initial, *DECAY)
    return [schedule(step) for step in range(steps)]


def ledger_of(multipliers: list[float]) -> Ledger:
    ledger = Ledger()
    for multiplier in multipliers:
        ledger.record(PoissonSampledEvent(RATE, GaussianEvent(multiplier)))
    return ledger


def timed(work: Callable[[], float], repeats: int = 5) -> tuple[float, float]:
    """Median seconds of ``repeats`` calls after a warm-up call, and the last value."""
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        value = work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), value


def timed_once(work: Callable[[], float]) -> tuple[float, float]:
    start = time.perf_counter()
    value = work()
    return time.perf_counter() - start, value


def tracked(ledger: Ledger) -> float:
    """The work of a monitor at each step: check that the next step fits, count it, compute the figure to print."""
    tracker, events = RDPAccountant().tracker(), [event for event, _ in ledger]
    for step, event in enumerate(events):
        if step % 128 == 0:
            tracker.prepare(events[step : step + 128])
        tracker.stays_within(event, 1e3, DELTA)
        tracker.add(event)
        epsilon = tracker.epsilon(DELTA)
    return epsilon


def peer_rows(steps: int) -> list[tuple[str, float, float, str]]:
    import dp_accounting
    from dp_accounting import pld, rdp
    from opacus.accountants import PRVAccountant
    from opacus.accountants import RDPAccountant as OpacusRDP

    multipliers = decayed_multipliers(INITIAL, steps)
    scale, note = STEPS / steps, f"measured on the first {steps} steps, time scaled by {STEPS // steps}"

    def dp(kind: Callable[[], Any], chosen: list[tuple[float, int]]) -> float:
        accountant = kind()
        for multiplier, count in chosen:
            event = dp_accounting.PoissonSampledDpEvent(RATE, dp_accounting.GaussianDpEvent(multiplier))
            accountant.compose(event, count)
        return float(accountant.get_epsilon(DELTA))

    def opacus(kind: Callable[[], Any], chosen: list[tuple[float, int]]) -> float:
        accountant = kind()
        accountant.history = [(multiplier, RATE, count) for multiplier, count in chosen]
        return float(accountant.get_epsilon(DELTA))

    distinct = [(multiplier, 1) for multiplier in multipliers]
    rows = []
    for name, work in (
        ("dp-accounting RDP", lambda chosen: dp(rdp.RdpAccountant, chosen)),
        ("dp-accounting PLD", lambda chosen: dp(pld.PLDAccountant, chosen)),
        ("Opacus RDP", lambda chosen: opacus(OpacusRDP, chosen)),
        ("Opacus PRV", lambda chosen: opacus(PRVAccountant, chosen)),
    ):
        seconds, epsilon = timed_once(partial(work, [CONSTANT]))
        rows.append((f"constant, {name}", seconds, epsilon, ""))
        seconds, _ = timed_once(partial(work, distinct))
        rows.append((f"10,000 multipliers, {name}", seconds * scale, float("nan"), note))
    return rows


def our_rows() -> list[tuple[str, float, float, str]]:
    constant = Ledger().record(PoissonSampledEvent(RATE, GaussianEvent(CONSTANT[0])), CONSTANT[1])
    many = ledger_of(decayed_multipliers(INITIAL))
    renyi, loss, fine = RDPAccountant(), PLDAccountant(), PLDAccountant(precision=1e-4)

    def calibrate(accountant: str) -> float:
        return calibrate_noise_multiplier(3.0, DELTA, lambda sigma: ledger_of(decayed_multipliers(sigma)), accountant)

    rows = []
    for label, work, target in (
        ("constant, dpmodel RDP", lambda: renyi.epsilon(constant, DELTA), "target 0.01 s"),
        ("constant, dpmodel PLD", lambda: loss.epsilon(constant, DELTA), "target 0.3 s"),
        ("10,000 multipliers, dpmodel RDP", lambda: renyi.epsilon(many, DELTA), "target 0.3 s"),
        ("10,000 multipliers, dpmodel PLD", lambda: loss.epsilon(many, DELTA), "target 1 s"),
        ("10,000 multipliers, dpmodel PLD at precision 1e-4", lambda: fine.epsilon(many, DELTA), "the truth is below"),
    ):
        seconds, value = timed(work)
        rows.append((label, seconds, value, target))
    seconds, sigma = timed(lambda: calibrate("rdp"), 3)
    rows.append(("initial multiplier for epsilon 3, RDP", seconds, sigma, "target 1.5 s; value is the multiplier"))
    seconds, sigma = timed_once(lambda: calibrate("pld"))
    rows.append(("initial multiplier for epsilon 3, PLD", seconds, sigma, "value is the multiplier"))
    seconds, epsilon = timed_once(lambda: tracked(many))
    rows.append(("monitor, per step of 10,000", seconds / STEPS, epsilon, "target 0.001 s"))
    return rows


def machine() -> str:
    model = platform.processor() or "unknown processor"
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("numpy", "scipy", "dp-accounting", "opacus")]
    return f"{model}, {os.cpu_count()} cores; Python {platform.python_version()}, {', '.join(versions)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-steps", type=int, default=100)
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "accounting.md")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = our_rows() + ([] if options.no_peers else peer_rows(options.peer_steps))
    lines = [
        "# Accounting: speed and tightness",
        "",
        f"Written by `python benchmarks/accounting.py`. {machine()}. Times after import, median of five "
        "(peers: one run).",
        "",
        f"Rate 512 / 60000, delta {DELTA:g}. Constant: multiplier {CONSTANT[0]}, {CONSTANT[1]} steps. "
        f"10,000 multipliers: {INITIAL} / (1 + {DECAY[1]:g} t), all different.",
        "",
        "| what | seconds | value (epsilon) | note |",
        "|---|---:|---:|---|",
    ]
    for label, seconds, value, note in rows:
        shown = "" if value != value else f"{value:.5g}"
        lines.append(f"| {label} | {seconds:.4g} | {shown} | {note} |")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
