"""What the write-ahead record costs: LeNet5, batches of 512, announced in blocks of 100 steps.

    PYTHONPATH=. python benchmarks/write_ahead.py [--steps 200] [--output benchmarks/results/write_ahead.md]

The clocks are around the calls of the record in the training loop, with all flushes to the disk.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

from machine import description

from dpmodel.callbacks import Silence
from dpmodel.config import make_config
from dpmodel.runs.train import train_from_config
from dpmodel.saving.keeper import StateKeeper
from dpmodel.saving.record import ReleaseRecord
from dpmodel.training.loop import TrainingLoop

BATCH, BLOCK = 512, 100
_DECAYING = {"name": "AdaGaussian", "decay_policy": "Exp", "noise_decay_rate": 0.001}

#: Name, and the privacy settings of a training.
CASES: dict[str, dict[str, Any]] = {
    "constant noise": {},
    "decaying noise: 100 different events per line": {"noise": _DECAYING},
    "decaying noise with a limit on epsilon": {"noise": _DECAYING, "monitor": {"max_eps": 100.0}},
}


def settings(steps: int, privacy: dict[str, Any]) -> dict[str, Any]:
    sizes = {"num_train": BLOCK * BATCH, "num_test": BATCH, "num_classes": 10}
    return {
        "data": {"name": "synthetic", "shape": [1, 32, 32], **sizes},
        "network": "lenet5",
        "optimizer": {"name": "SGD", "lr": 0.1},
        "privacy": {"noise_multiplier": 1.0, **privacy},
        "training": {"epochs": -(-steps // BLOCK), "batch_size": BATCH},
        "output": {"curve": False, "save_every_steps": BLOCK},
    }


def measured(steps: int, privacy: dict[str, Any]) -> tuple[dict[str, float], int]:
    """Seconds by part, and the number of steps."""
    seconds: defaultdict[str, float] = defaultdict(float)

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def clocked(*arguments: Any, **options: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                seconds[name] += time.perf_counter() - begin

        return clocked

    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(TrainingLoop, "_steps", timed("all", TrainingLoop._steps)),
        patch.object(ReleaseRecord, "before_release", timed("record", ReleaseRecord.before_release)),
        patch.object(StateKeeper, "_save", timed("state", StateKeeper._save)),
    ):
        found = train_from_config(make_config(settings(steps, privacy)), Path(folder) / "run", callbacks=[Silence()])
    return seconds, found.history[-1].step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    lines = [
        "# Write-ahead record",
        "",
        f"Measured by `python benchmarks/write_ahead.py --steps {options.steps}`: LeNet5, batches of {BATCH},",
        f"blocks of {BLOCK} steps. {description()}",
        "",
        "Before each block: a line in the journal, and a mark outside the folder, each flushed to the disk. Saving the",
        "state after each block is not part of the record.",
        "",
        "| training | step | journal and mark, per block | share of the time | saving the state, per block |",
        "|---|---|---|---|---|",
    ]
    for name, privacy in CASES.items():
        seconds, steps = measured(options.steps, privacy)
        blocks = -(-steps // BLOCK)
        lines.append(
            f"| {name} | {seconds['all'] / steps * 1e3:.1f} ms | {seconds['record'] / blocks * 1e3:.1f} ms "
            f"| {seconds['record'] / seconds['all']:.2%} | {seconds['state'] / blocks * 1e3:.1f} ms |"
        )
        print(lines[-1], flush=True)
    if options.output:
        options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
