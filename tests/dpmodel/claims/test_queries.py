"""The epsilon of a training covers the answers to queries, or says that it does not."""

import gc

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from dpmodel import CountingQuery, DPModel, LaplaceEvent, Ledger, NoiseMechanismsFactory, poisson_loader
from dpmodel.statistics import private_mean_and_variance

NOTE = "private queries were answered on a different ledger"


def fitted(first=None, **options):
    network = nn.Sequential(first or nn.Identity(), nn.Linear(2, 2))
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


@pytest.mark.parametrize("epsilon", [0.1, 0.2])
def test_an_equal_answer_on_the_ledger_of_the_training_does_not_hide_another(asked, epsilon, capsys):
    ledger = Ledger()
    CountingQuery(epsilon=epsilon).count([True, False], ledger)
    fitted()
    assert NOTE in capsys.readouterr().out
    fitted(ledger=ledger.merge(asked))
    assert NOTE not in capsys.readouterr().out


def test_an_answer_on_a_ledger_that_nothing_refers_to_is_not_forgotten(capsys):
    CountingQuery(epsilon=5.0).histogram([0, 1, 2], 3, Ledger())
    gc.collect()
    model = fitted()
    assert NOTE in capsys.readouterr().out
    assert any(NOTE in note for note in model.ledger.notes)


def test_the_releases_of_a_layer_do_not_hide_equal_answers(capsys):
    x, bounds = torch.randn(20, 2), {"noise_multiplier": 8.0, "norm_bound": 1.0, "square_bound": 1.0}
    private_mean_and_variance(x.abs(), ledger=Ledger(), **bounds)
    fitted(first=private_mean_and_variance(x, ledger=Ledger(), **bounds).normalise())
    assert NOTE in capsys.readouterr().out


def test_a_training_on_a_separate_ledger_says_that_it_does_not_cover_them(asked, capsys):
    model = fitted()
    assert NOTE in capsys.readouterr().out
    assert any(NOTE in note for note in model.report().spent.notes)
    assert asked.total == 1
