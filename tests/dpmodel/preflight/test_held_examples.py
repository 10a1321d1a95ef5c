"""Training examples inside the network or the loss are refused; what only looks like them is not."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dpmodel.callbacks import Silence
from dpmodel.preflight.held_examples import require_no_examples
from mechanisms.engines.batch import Batch
from monitors.errors import DataError

WIDTH = 9


class Bank(nn.Module):
    def __init__(self, bank):
        super().__init__()
        self.head = nn.Linear(WIDTH, 3)
        self.register_buffer("bank", bank)

    def forward(self, x):
        return self.head(x) * self.bank.mean()


class BankLoss(nn.Module):
    def __init__(self, bank):
        super().__init__()
        self.kept = [bank]

    def forward(self, outputs, targets):
        return nn.functional.cross_entropy(outputs * self.kept[0].mean(), targets)


def fitted(make_model, x, *, network=None, loss_fn=None):
    model = make_model(network or nn.Linear(WIDTH, 3), loss_fn, sampling="shuffle")
    model.fit(DataLoader(TensorDataset(x, torch.arange(len(x)) % 3), batch_size=8), callbacks=Silence())
    return model


@pytest.mark.parametrize(
    "bank",
    [lambda x: x, lambda x: x.clone()[torch.randperm(len(x))], lambda x: x.view(4, 8, WIDTH), lambda x: x[:20]],
)
def test_rows_of_the_training_data_are_refused(make_model, bank):
    x = torch.randn(32, WIDTH)
    with pytest.raises(DataError, match="the network holds training examples in a tensor of shape"):
        fitted(make_model, x, network=Bank(bank(x)))
    with pytest.raises(DataError, match="the loss holds training examples in a tensor of shape"):
        fitted(make_model, x, loss_fn=BankLoss(bank(x)))


def test_a_bank_of_public_examples_is_trained_with(make_model):
    assert fitted(make_model, torch.randn(32, WIDTH), network=Bank(torch.randn(32, WIDTH))).ledger.total


@pytest.mark.parametrize(
    ("x", "bank"),
    [
        (torch.randn(32, WIDTH), torch.ones(32, WIDTH)),
        (torch.ones(9, 9).tril()[torch.randperm(9)], torch.ones(9, 9).tril()),
        (torch.eye(9), torch.eye(9)),
        (torch.randn(32, WIDTH), torch.randn(32, WIDTH).to(torch.float8_e4m3fn)),
        (torch.randn(32, WIDTH), torch.randn(32, WIDTH).to_sparse()),
    ],
)
def test_public_tables_are_accepted(x, bank):
    network = nn.Linear(WIDTH, 3)
    network.register_buffer("bank", bank)
    require_no_examples(network, nn.CrossEntropyLoss(), Batch(x[:4], torch.zeros(4)))


@pytest.mark.parametrize(
    "x", [torch.randn(4, 9, dtype=torch.complex64), torch.arange(36).view(4, 9), torch.zeros(4, 0), torch.zeros(4)]
)
def test_examples_of_all_kinds_are_compared(x):
    require_no_examples(nn.Linear(2, 2), nn.CrossEntropyLoss(), Batch(x, torch.zeros(4)))


def test_examples_in_a_long_list_are_found(make_model):
    x = torch.randn(64, WIDTH)
    loss_fn = BankLoss(torch.zeros(WIDTH))
    loss_fn.kept += list(x)
    with pytest.raises(DataError, match="the loss holds training examples in a tensor"):
        fitted(make_model, x, loss_fn=loss_fn)
