"""What tests of updates share: optimizers, a network, and what is compared."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn, optim

from dpmodel import Callback
from dpmodel.optimizers import Momentum

SIZE = 16  # expected examples of a batch
STEPS = 12


def small():
    return nn.Sequential(nn.Linear(4, 20), nn.Tanh(), nn.Linear(20, 3))


SGD = functools.partial(optim.SGD, lr=0.1)
OPTIMIZERS = {
    "sgd": SGD,
    "momentum": functools.partial(optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "fused momentum": functools.partial(optim.SGD, lr=0.1, momentum=0.9, fused=True),
    "MindSpore's momentum": functools.partial(Momentum, learning_rate=0.1),
    "fused adam": functools.partial(optim.Adam, lr=0.01, amsgrad=True, fused=True),
    "fused adamw": functools.partial(optim.AdamW, lr=0.01, fused=True),
    "nesterov of single tensors": functools.partial(optim.SGD, lr=0.1, momentum=0.9, nesterov=True, foreach=False),
    "two groups": lambda parameters: two_groups(list(parameters)),
}


def two_groups(parameters):
    return optim.SGD([{"params": parameters[:2], "lr": 0.5}, {"params": parameters[2:]}], lr=0.1, momentum=0.9)


def weights(model):
    return torch.cat([value.detach().flatten() for value in model.network.parameters()])


def require_same(found, expected):
    torch.testing.assert_close(weights(found), weights(expected), rtol=1e-5, atol=1e-6)
    assert list(found.ledger) == list(expected.ledger)
    assert [row.loss for row in found.history] == pytest.approx([row.loss for row in expected.history], rel=1e-5)


class Keeping(Callback):
    """Keeps the weights of all steps."""

    def __init__(self):
        self.kept = []

    def on_train_step_end(self, run):
        self.kept.append(torch.cat([value.detach().flatten() for value in run.network.parameters()]))


class Silent(nn.Module):
    """A network whose gradient is zero."""

    def __init__(self, entries=3000):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(entries))

    def forward(self, x):
        return x[:, :3] + 0.0 * self.weight.sum()
