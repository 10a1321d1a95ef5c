"""Configurations with damaged settings: refused by an error that names them, or built and checked."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dpmodel.config import load_config
from dpmodel.planning.training_plan import plan_training
from dpmodel.runs.train import train_from_config

from .mutations import bytes_damaged, extreme, lines_damaged, value_damaged
from .run_folders import outcome

CONFIGS = Path(__file__).parents[3] / "configs"

#: Small enough to build a thousand times; large enough for the batches of the smallest configuration.
DATA = {"name": "synthetic", "shape": [1, 32, 32], "num_train": 512, "num_test": 20, "num_classes": 10}

#: Other values of settings that are names: a damaged configuration should not only fail by its first name.
NAMES = (
    "linear",
    "Momentum",
    "Adam",
    "SGD",
    "StepLR",
    "OneCycleLR",
    "AdaGaussian",
    "Gaussian",
    "shuffle",
    "pld",
    "rdp",
)


class BeginsNowError(Exception):
    """Everything was checked, and the first step would begin."""


class Stop:
    """Ends a training before its first step."""

    def on_train_begin(self, run) -> None:
        """Called after all checks."""
        raise BeginsNowError


def settings() -> list[dict[str, Any]]:
    """The training configurations of the repository on small data."""
    read = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(CONFIGS.glob("lenet5_*.yaml"))]
    for values in read:
        values["data"], values["network"] = dict(DATA), values["network"] if values is read[0] else "linear"
        values["training"] |= {"batch_size": 64, "epochs": 2}
        values["performance"] = {"device": "cpu", "threads": 1}
        values.setdefault("callbacks", ["LossMonitor", {"name": "EarlyStopping", "patience": 2}])
        values["optimizer"].setdefault("schedule", {"name": "StepLR", "step_size": 5, "gamma": 0.5})
    return read


def damaged(number: int) -> bytes:
    """The text of a configuration, damaged as ``number`` determines."""
    rng = np.random.default_rng(number)
    known = settings()
    values = known[rng.integers(len(known))]
    for _ in range(int(rng.integers(1, 4))):
        values = value_damaged(values, rng)
        if rng.random() < 0.3 and isinstance(values, dict):
            section = values.get(("network", "optimizer", "privacy", "loss", "training")[rng.integers(5)])
            if isinstance(section, dict) and section:
                name = NAMES[rng.integers(len(NAMES))]
                section[sorted(map(str, section))[rng.integers(len(section))]] = (
                    name if rng.random() < 0.5 else extreme(rng)
                )
    try:
        text = yaml.safe_dump(values, sort_keys=False).encode("utf-8", "replace")
    except (RecursionError, yaml.YAMLError):
        text = b"[" * 2000
    kind = rng.random()
    return bytes_damaged(text, rng) if kind < 0.1 else lines_damaged(text, rng) if kind < 0.25 else text


def check(number: int, place: Path) -> None:
    """Load, plan, build and check the configuration ``number``, without training."""
    os.chdir(place)  # paths in a configuration may be relative
    file = place / "damaged.yaml"
    file.write_bytes(damaged(number))
    with contextlib.redirect_stdout(io.StringIO()):
        config = outcome(lambda: load_config(file))
        if config is None:
            return
        outcome(lambda: plan_training(config, 512))
        with contextlib.suppress(BeginsNowError):
            outcome(lambda: train_from_config(config, place / "run", callbacks=[Stop()]))
        assert not (place / "run").exists(), f"{number}: a run folder was left behind"
