"""A comparison small enough to run in a test."""

from __future__ import annotations

import copy

import pytest
import yaml

from dpmodel.compare import make_comparison, run_comparison

TINY = {
    "base": {
        "data": {"name": "synthetic", "num_train": 120, "num_test": 60, "num_classes": 3, "shape": [1, 4, 4]},
        "network": {"name": "linear"},
        "optimizer": {"name": "SGD", "lr": 0.5},
        "privacy": {"noise_multiplier": 1.0, "norm_bound": 1.0},
        "training": {"epochs": 1, "batch_size": 20},
        "output": {"curve": False},
    },
    "target": {"epsilon": 3.0, "delta": 1e-5, "accountant": "rdp"},
    "seeds": [1, 2],
    "variants": [
        {"name": "fixed"},
        {
            "name": "Exp strong",
            "set": {"privacy.noise": {"name": "AdaGaussian", "decay_policy": "Exp", "noise_decay_rate": 0.2}},
        },
    ],
}


@pytest.fixture
def tiny():
    """Values of a comparison; a test may change them."""
    return copy.deepcopy(TINY)


@pytest.fixture
def write(tmp_path):
    """Writes values as a comparison file."""

    def write(values, name="tiny.yaml"):
        path = tmp_path / name
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        return path

    return write


@pytest.fixture(scope="session")
def carried_out(tmp_path_factory):
    """A comparison that has run once; tests must not change its folder."""
    values = copy.deepcopy(TINY)
    values["variants"].append(
        {
            "name": "adaptive clip",
            "set": {"privacy.clip": {"name": "Gaussian", "decay_policy": "Geometric", "fraction_stddev": 0.1}},
        }
    )
    return run_comparison(make_comparison(values, "tiny"), tmp_path_factory.mktemp("tiny"), jobs=1)
