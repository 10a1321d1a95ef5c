"""Membership attacks on LeNet5, trained on the same part of MNIST with and without privacy.

    python benchmarks/attack.py --root DATA --work runs/attack --output docs/results/membership_inference.md

Shadow models are kept in the folder of ``--work``: a repeated run makes the attacks again, not the trainings.
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from pathlib import Path
from typing import Any

import machine
import torch

from dpmodel.attack import AttackReport, attack
from dpmodel.config import Config, make_config
from monitors.spent import epsilon_text

RATES = (0.01, 0.001)

#: Trained privately at epsilon 1 and 8, without noise, and as usual: neither clipped nor noisy, until it is overfitted.
VARIANTS: dict[str, dict[str, Any]] = {
    "private, epsilon 1": {"privacy": {"target_epsilon": 1.0}},
    "private, epsilon 8": {"privacy": {"target_epsilon": 8.0}},
    "clipped, without noise": {"privacy": {"noise": None}},
    "not private": {"privacy": {"noise": None, "norm_bound": 1e6}, "optimizer": {"lr": 0.1}, "epochs": 2},
}

PAGE = """# Membership inference

LeNet5 on {examples:,} training and as many test images of MNIST (`--targets shadows`): {shadows} trainings on random
halves, each attacked with the help of the others. The trainings differ in noise and clipping; the one that is not
private also in its learning rate, and in {longer} times as many epochs ({epochs} otherwise). Measured by

    python benchmarks/attack.py --root DATA --work runs/attack --output docs/results/membership_inference.md

{machine}

In brackets: the 95 % interval. "Allowed" is what the trade-off curve of the ledger permits to any attack.

{table}

An attack that fails proves nothing. What the figures mean: [membership inference](../attack.md).
"""


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="folder of MNIST; default: that of the data set")
    parser.add_argument("--work", type=Path, default=Path("runs/attack"), help="folder of the shadow models")
    parser.add_argument("--output", type=Path, default=Path("docs/results/membership_inference.md"))
    parser.add_argument("--shadows", type=int, default=16)
    parser.add_argument("--examples", type=int, default=2000, help="training images, and test images")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--fpr", type=float, action="append", help="false-positive rates")
    asked = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    described, rows = machine.description("scipy"), []
    for name, changes in VARIANTS.items():
        started, cache = time.perf_counter(), asked.work / name.replace(",", "").replace(" ", "_")
        report = attack(
            config_of(changes, asked),
            shadows=asked.shadows,
            examples=asked.examples,
            rates=asked.fpr or RATES,
            cache=cache,
            jobs=asked.jobs,
        )
        seconds = time.perf_counter() - started
        print(f"{name}: {report.verdict}, {seconds:.0f} s", flush=True)
        rows += rows_of(name, report, seconds)
    head = ["training", "epsilon", "attack", "figure", "reached", "allowed", "time of all attacks"]
    lines = [head, ["---"] * len(head), *rows]
    page = PAGE.format(
        examples=asked.examples,
        shadows=asked.shadows,
        longer=VARIANTS["not private"]["epochs"],
        epochs=asked.epochs,
        machine=described,
        table="\n".join(f"| {' | '.join(cells)} |" for cells in lines),
    )
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    asked.output.write_text(page)
    print(page)


def config_of(changes: dict[str, Any], asked: argparse.Namespace) -> Config:
    """The configuration of a variant; a fifth of the test images is the population of ``rmia``."""
    changes = copy.deepcopy(changes)
    privacy = {"delta": 1e-5, "accountant": "pld", "norm_bound": 0.1, **changes.get("privacy", {})}
    data = {"name": "mnist", "image_size": 32, "mean": 0.13, "std": 0.31, "limit": asked.examples}
    data |= {"test_limit": asked.examples + min(1000, asked.examples // 4)}
    return make_config(
        {
            "data": {**data, **({"root": asked.root} if asked.root else {})},
            "network": {"name": "lenet5", "activation": "tanh", "init": "orthogonal"},
            "optimizer": {"name": "Momentum", "lr": 3.0, "momentum": 0.9, **changes.get("optimizer", {})},
            "privacy": privacy,
            "training": {
                "epochs": asked.epochs * changes.get("epochs", 1),
                "batch_size": asked.batch_size,
                "seed": 1,
            },
        }
    )


def rows_of(name: str, report: AttackReport, seconds: float) -> list[list[str]]:
    """The rows of one report."""
    epsilon, rows = epsilon_text(report.epsilon, 2), []
    for measure in report.measures:
        reached = f"{measure.value:.4f} ({measure.low:.4f} to {measure.high:.4f})"
        allowed = f"{measure.limit:.4f}" if report.limit.exists else "everything"
        rows.append([name, epsilon, measure.method, measure.name, reached, allowed, f"{seconds:.0f} s"])
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
