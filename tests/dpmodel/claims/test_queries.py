"""The epsilon of a training covers the answers to queries, or says that it does not."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from dpmodel import CountingQuery, DPModel, LaplaceEvent, Ledger, NoiseMechanismsFactory, poisson_loader

NOTE = "private queries were answered on a different ledger"


def fitted(**options):
    network = nn.Linear(2, 2)
    noise = NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=2.0)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    model = DPModel(network, nn.CrossEntropyLoss(), optimizer, noise_mech=noise, **options)
    model.fit(poisson_loader(TensorDataset(torch.randn(20, 2), torch.randint(0, 2, (20,))), batch_size=10))
    return model


@pytest.fixture
def asked():
    ledger = Ledger()
    CountingQuery(epsilon=0.1).count([True, False], ledger)
    return ledger


def test_a_training_on_the_same_ledger_covers_the_queries(asked, capsys):
    model = fitted(ledger=asked)
    assert NOTE not in capsys.readouterr().out
    assert LaplaceEvent(10.0) in [event for event, _ in model.ledger]
    alone = fitted(ledger=Ledger())
    assert NOTE not in capsys.readouterr().out
    for accountant in ("rdp", "pld"):
        assert model.privacy_spent(1e-5, accountant).epsilon > alone.privacy_spent(1e-5, accountant).epsilon
    assert model.report().figures["pld"] == model.privacy_spent(1e-5, "pld").epsilon


def test_a_training_on_a_separate_ledger_says_that_it_does_not_cover_them(asked, capsys):
    model = fitted()
    assert NOTE in capsys.readouterr().out
    assert any(NOTE in note for note in model.report().spent.notes)
    assert asked.total == 1
