"""Trainings whose sampling rate comes from a public number of examples."""

import re

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from dpmodel import DPModel, NoiseMechanismsFactory, evaluate_run, poisson_loader
from dpmodel.callbacks import Silence
from dpmodel.config import make_config
from dpmodel.planning.training_plan import plan_training
from dpmodel.runs.build import build_training
from dpmodel.runs.card import card_of_run
from dpmodel.runs.folder import RunFolder
from dpmodel.runs.report.not_accounted import not_accounted
from dpmodel.runs.train import train_from_config
from monitors.errors import ConfigError

ROWS, PUBLIC = 53, 60
SETTINGS = {
    "data": {"name": "synthetic", "shape": [1, 4, 4], "num_train": ROWS, "num_test": 20, "num_classes": 2},
    "network": "linear",
    "optimizer": {"name": "SGD", "lr": 0.5},
    "privacy": {"target_epsilon": 8.0, "num_examples_public": PUBLIC},
    "training": {"epochs": 2, "batch_size": 6},
    "output": {"curve": False},
}


def test_a_run_folder_states_the_public_number_and_never_the_true_one(tmp_path):
    config = make_config(SETTINGS)
    result = train_from_config(config, tmp_path / "run", callbacks=[Silence()])
    folder = RunFolder(tmp_path / "run")
    ledger = folder.read_ledger()
    assert ledger.rows == plan_training(config).ledger().rows
    assert ledger.total == 2 * (PUBLIC // 6)
    assert result.report.spent.epsilon <= 8.0
    assert result.report.mechanism["num_examples"] == PUBLIC
    # Digests and times may contain the digits. The configuration itself makes the data here, and so states their size;
    # nothing else does.
    said = folder.config.read_text().replace(f"num_train: {ROWS}", "")
    for text in (said, folder.report.read_text(), folder.statement.read_text(), folder.ledger.read_text()):
        assert not re.search(rf"(?<![\w.:-]){ROWS}(?![\w.:-])", text.replace(str(ledger.digest()), ""))
    assert evaluate_run(folder.path).num_examples == PUBLIC
    assert card_of_run(folder.path).card["unit"]["num_examples_public"] == PUBLIC


def test_classes_that_only_the_private_labels_state_are_refused(tmp_path):
    x, y = np.zeros((ROWS, 4), np.float32), np.arange(ROWS) % 2
    np.savez(tmp_path / "own.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    counted = {**SETTINGS, "data": {"name": "npz", "root": str(tmp_path / "own.npz")}}
    message = (
        f"the classes were counted in the training labels.*num_examples_public={PUBLIC} does not cover; state data.n"
    )
    with pytest.raises(ConfigError, match=message):
        build_training(make_config(counted))
    assert build_training(make_config(counted, ["data.num_classes=2"])).plan.steps == 2 * (PUBLIC // 6)
    known = build_training(make_config(counted, ["privacy.num_examples_public=null"])).plan
    assert any("if the classes were counted in the training labels" in text for text in not_accounted(known.subject))


def test_the_loader_of_python_trains_at_the_stated_rate():
    data = TensorDataset(torch.randn(ROWS, 4), torch.randint(0, 2, (ROWS,)))
    network = torch.nn.Linear(4, 2)
    noise = NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=2.0)
    model = DPModel(
        network, torch.nn.CrossEntropyLoss(), torch.optim.SGD(network.parameters(), lr=0.1), noise_mech=noise
    )
    model.fit(poisson_loader(data, 6, num_examples_public=PUBLIC), epochs=1, callbacks=[Silence()])
    (event, count), *others = model.ledger.rows
    assert (event.sampling_rate, count, others) == (6 / PUBLIC, PUBLIC // 6, [])
    report = model.report(card={"contributions_per_person": 2})
    assert report.card["unit"]["num_examples_public"] == PUBLIC
    assert report.card["unit"]["person_epsilon"] > report.spent.epsilon
