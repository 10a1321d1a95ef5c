"""Models that are trained in several threads of a process are trained one after the other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from dpmodel import DPModel, NoiseMechanismsFactory, poisson_loader
from monitors.errors import UnprotectedUpdateError

pytestmark = pytest.mark.usefixtures("frequent_switches")


def made_model():
    network = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 3))
    noise = NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=1.0)
    return DPModel(network, nn.CrossEntropyLoss(), torch.optim.SGD(network.parameters(), lr=0.1), noise_mech=noise)


@pytest.fixture
def data():
    return TensorDataset(torch.randn(32, 4), torch.randint(3, (32,)))


def test_each_training_is_charged_and_described_as_if_it_were_alone(data):
    def trained(model):
        model.fit(poisson_loader(data, batch_size=8), epochs=2)
        return model

    alone = trained(made_model())
    with ThreadPoolExecutor(3) as pool:
        for model in pool.map(trained, [made_model() for _ in range(4)]):
            assert list(model.ledger) == list(alone.ledger)
            assert (model.ledger.notes, model.explain_engine()) == (alone.ledger.notes, alone.explain_engine())


def test_a_model_that_is_training_is_refused_in_another_thread(data):
    model = made_model()

    class Second:
        def on_train_step_end(self, run):
            with ThreadPoolExecutor(1) as pool, pytest.raises(UnprotectedUpdateError, match="while this model"):
                pool.submit(model.fit, poisson_loader(data, batch_size=8)).result()

    model.fit(poisson_loader(data, batch_size=8), callbacks=[Second()])
    assert model.ledger.total == 4
