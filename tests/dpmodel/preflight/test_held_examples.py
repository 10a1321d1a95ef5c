"""Training examples inside the network or the loss are refused; what only looks like them is not."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dpmodel.callbacks import Silence
from monitors.errors import DataError


class Bank(nn.Module):
    def __init__(self, bank):
        super().__init__()
        self.head = nn.Linear(4, 3)
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
    model = make_model(network, loss_fn, sampling="shuffle")
    model.fit(DataLoader(TensorDataset(x, torch.arange(len(x)) % 3), batch_size=8), callbacks=Silence())
    return model


@pytest.mark.parametrize("bank", [lambda x: x, lambda x: x.clone()[torch.randperm(len(x))], lambda x: x.view(4, 8, 4)])
def test_rows_of_the_training_data_are_refused(make_model, bank):
    x = torch.randn(32, 4)
    with pytest.raises(DataError, match="the network holds training examples in a tensor of shape"):
        fitted(make_model, x, network=Bank(bank(x)))
    with pytest.raises(DataError, match="the loss holds training examples in a tensor of shape"):
        fitted(make_model, x, loss_fn=BankLoss(bank(x)))


@pytest.mark.parametrize("bank", [torch.randn(32, 4), torch.eye(4), torch.ones(32, 4)])
def test_public_tensors_are_accepted(make_model, bank):
    assert fitted(make_model, torch.randn(32, 4), network=Bank(bank)).ledger.total
    assert fitted(
        make_model, torch.eye(4).repeat(8, 1) + torch.arange(32)[:, None], loss_fn=BankLoss(bank)
    ).ledger.total
