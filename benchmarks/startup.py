"""How long the commands take that need no training: whole processes, best and median of several runs.

    python benchmarks/startup.py [--runs 9]

Targets: ``dpmodel budget`` under 0.7 s; ``import dpmodel`` loads no torch.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = ["-n", "60000", "-b", "256", "-e", "10"]

COMMANDS = {
    "python, nothing else": ["-c", "pass"],
    "import dpmodel": ["-c", "import dpmodel"],
    "budget: epsilon of a multiplier": ["-m", "dpmodel", "budget", *SETTINGS, "--noise-multiplier", "1.5"],
    "budget: multiplier for epsilon 3": ["-m", "dpmodel", "budget", *SETTINGS, "--target-epsilon", "3"],
    "budget: configuration": ["-m", "dpmodel", "budget", "configs/lenet5_mnist.yaml"],
}


def seconds(arguments: list[str]) -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, *arguments], capture_output=True, cwd=ROOT, check=True)
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9, help="counted runs of each command")
    runs = parser.parse_args().runs
    print(f"{'command':<36}{'best s':>8}{'median s':>10}")
    for name, arguments in COMMANDS.items():
        seconds(arguments)
        times = [seconds(arguments) for _ in range(runs)]
        print(f"{name:<36}{min(times):8.2f}{statistics.median(times):10.2f}")


if __name__ == "__main__":
    main()
