"""Epsilon of a million different multipliers: processor time and memory of each accountant.

    PYTHONPATH=. python benchmarks/million.py [--output benchmarks/results/million.md]

Each accountant has a process of its own. Memory is the growth of its peak beside the ledger.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from accounting import DELTA, INITIAL, RATE, machine

from monitors import GaussianEvent, Ledger, PoissonSampledEvent
from monitors.schedules import decayed
from monitors.spent import resolve_accountant

STEPS, DECAY_RATE = 1_000_000, 1e-6
RATES = (RATE, 1e-4)


def measured(accountant: str, rate: float) -> dict[str, float]:
    schedule, ledger = decayed(INITIAL, "Time", DECAY_RATE), Ledger()
    for step in range(STEPS):
        ledger.record(PoissonSampledEvent(rate, GaussianEvent(schedule(step))))
    before, start = peak(), time.process_time()
    epsilon = resolve_accountant(accountant).epsilon(ledger, DELTA)
    return {"seconds": time.process_time() - start, "mebibytes": peak() - before, "epsilon": epsilon}


def peak() -> float:
    """Peak memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=2, metavar=("ACCOUNTANT", "RATE"))
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(options.one[0], float(options.one[1]))))
        return
    lines = [
        "# A million different multipliers",
        "",
        f"Measured by `python benchmarks/million.py --output {options.output or 'FILE'}`. {machine()}.",
        "",
        f"Multipliers {INITIAL} / (1 + {DECAY_RATE:g} t), {STEPS:,} steps, delta {DELTA:g}; processor time, and memory "
        "beside the ledger.",
        "",
        "| accountant | sampling rate | seconds | MiB | epsilon |",
        "|---|---:|---:|---:|---:|",
    ]
    for accountant in ("pld", "rdp"):
        for rate in RATES:
            command = [sys.executable, __file__, "--one", accountant, repr(rate)]
            found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            lines.append(
                f"| {accountant} | {rate:.4g} | {found['seconds']:.1f} | {found['mebibytes']:.0f} "
                f"| {found['epsilon']:.4g} |"
            )
            print(lines[-1], flush=True)
    if options.output:
        options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
