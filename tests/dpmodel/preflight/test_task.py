import sys

import numpy as np
import pytest
import torch
import yaml

from dpmodel.config import load_config, make_config
from dpmodel.runs.build import build_task
from dpmodel.runs.train import train_from_config
from monitors.errors import ConfigError, DataError, MissingDataError

BASE = {
    "network": "linear",
    "optimizer": "SGD",
    "privacy": {"noise_multiplier": 1.0},
    "training": {"epochs": 1, "batch_size": 4},
}
FLOATS = np.random.default_rng(0).random((12, 5))
EMBEDDING = """
from torch import nn
class Net(nn.Module):
    def __init__(self, num_classes, vocabulary):
        super().__init__()
        self.table, self.head = nn.Embedding(vocabulary, 4), nn.Linear(4, num_classes)
    def forward(self, tokens):
        return self.head(self.table(tokens).mean(1))
"""


@pytest.fixture
def build(tmp_path):
    def of(x, y, **changes):
        np.savez(tmp_path / "own.npz", x_train=x[:8], y_train=y[:8], x_test=x[8:], y_test=y[8:])
        training = {**BASE["training"], **changes.pop("training", {})}
        data = {"name": "npz", "root": str(tmp_path / "own.npz")}
        return build_task(make_config({**BASE, "data": data, **changes, "training": training}))

    return of


@pytest.fixture
def embedding(tmp_path, monkeypatch):
    (tmp_path / "token_net.py").write_text(EMBEDDING)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "token_net", raising=False)
    return lambda vocabulary: {"module": "token_net:Net", "vocabulary": vocabulary}


@pytest.mark.parametrize("row", [0, 5, 11])
@pytest.mark.parametrize("token", [9, -1])
def test_a_token_that_the_network_has_no_row_for_is_found_wherever_it_is(build, embedding, row, token):
    tokens, labels = np.ones((12, 3), int), np.arange(12) % 2
    build(tokens, labels, network=embedding(9))
    tokens[row, 1] = token
    numbers = f"with integers from {min(token, 1)} to {max(token, 1)}"
    with pytest.raises(ConfigError, match=rf"cannot take inputs of shape \(3,\) {numbers} from data set 'npz'"):
        build(tokens, labels, network=embedding(9))


@pytest.mark.parametrize(
    ("targets", "loss"), [(FLOATS[:, :3].round(), "bce_with_logits"), (FLOATS[:, :1], "mse"), (FLOATS[:, 0], "mse")]
)
def test_metrics_of_classes_are_refused_for_numbers_and_several_labels(build, targets, loss):
    for metrics in (["accuracy"], ["loss", "f1"]):
        with pytest.raises(ConfigError, match=rf"training\.metrics: '{metrics[-1]}' takes one class index") as caught:
            build(FLOATS, targets, loss=loss, training={"metrics": metrics})
        assert "[loss] for several labels" in str(caught.value)
    build(FLOATS, targets, loss=loss, training={"metrics": ["loss", "mae"]})


def test_one_column_of_zeros_and_ones_is_two_classes(build):
    build(FLOATS, FLOATS[:, :1].round(), loss="bce_with_logits", training={"metrics": ["accuracy"]})


def test_a_test_label_beyond_the_training_classes_does_not_widen_the_network(build):
    labels = np.arange(12) % 2
    assert build(FLOATS, labels).network(torch.zeros(1, 5)).shape == (1, 2)
    labels[10] = 9
    with pytest.raises(DataError, match=r"npz test: label 9 in row 2 is not in \[0, 2\)"):
        build(FLOATS, labels)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ("network: {name: linear, num_classes: 1}", r"run\.yaml:1: network\.num_classes: CrossEntropyLoss"),
        ("loss: mse\nnetwork: linear", r"run\.yaml:1: loss: MSELoss compares"),
        ("training:\n  epochs: 1\n  batch_size: 4\n  metrics: [mae]", r"run\.yaml:4: training\.metrics"),
    ],
)
def test_data_that_do_not_fit_a_setting_are_refused_with_its_line(tmp_path, change, place):
    rest = {key: value for key, value in BASE.items() if f"{key}:" not in change}
    rest["data"] = {"name": "synthetic", "shape": [1, 2, 2], "num_train": 12, "num_test": 4, "num_classes": 2}
    (tmp_path / "run.yaml").write_text(f"{change}\n{yaml.safe_dump(rest)}")
    with pytest.raises(DataError, match=place):
        train_from_config(load_config(tmp_path / "run.yaml"), tmp_path / "run")


def test_missing_data_are_named_with_the_line_of_the_data(tmp_path):
    text = yaml.safe_dump({**BASE, "data": {"name": "npz", "root": str(tmp_path / "none.npz")}}, sort_keys=False)
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(MissingDataError, match=r"run\.yaml:\d+: data: .*none\.npz does not exist"):
        build_task(load_config(tmp_path / "run.yaml"))
