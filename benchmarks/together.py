"""Two trainings at once on one machine, compared with one after the other.

    PYTHONPATH=. python benchmarks/together.py [--config FILE] [--set training.epochs=3] [--output FILE]

Each training is one `dpmodel train` in a process of its own, with start-up. The same is measured with threads that spin
while they wait (`OMP_WAIT_POLICY=ACTIVE`) and with one thread each.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import description

#: Name, and the environment and settings of a training.
WAYS = {
    "default (threads wait passively)": ({}, []),
    "spinning threads": ({"OMP_WAIT_POLICY": "ACTIVE"}, []),
    "one thread": ({}, ["--set", "performance.threads=1"]),
}


def started(command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL)


def seconds(count: int, at_once: bool, command: list[str], environment: dict[str, str]) -> float:
    """Wall time of ``count`` trainings."""
    with tempfile.TemporaryDirectory() as folder:
        commands = [[*command, "--quiet", "--output", f"{folder}/{number}"] for number in range(count)]
        begin = time.perf_counter()
        running = []
        for each in commands:
            running.append(started(each, environment))
            if not at_once:
                running[-1].wait()
        codes = [process.wait() for process in running]
        if any(codes):
            raise RuntimeError(f"a training failed: exit codes {codes}")
        return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/lenet5_mnist_gaussian.yaml")
    parser.add_argument("--set", dest="settings", action="append", default=[])
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    settings = [part for setting in options.settings or ["training.epochs=3"] for part in ("--set", setting)]
    lines = [
        "# Two trainings at once",
        "",
        f"`python benchmarks/together.py --output {options.output or 'FILE'}` on {options.config} with "
        f"{' '.join(settings)}. {description()}",
        "",
        "| threads | one | two, one after the other | two at once | at once over one after the other |",
        "|---|---|---|---|---|",
    ]
    for name, (environment, arguments) in WAYS.items():
        command = [sys.executable, "-m", "dpmodel", "train", options.config, *settings, *arguments]
        one = seconds(1, False, command, environment)
        serial, parallel = (seconds(2, at_once, command, environment) for at_once in (False, True))
        lines.append(f"| {name} | {one:.1f} s | {serial:.1f} s | {parallel:.1f} s | {parallel / serial:.2f} |")
        print(lines[-1], flush=True)
    if options.output:
        options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
