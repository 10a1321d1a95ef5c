"""Canaries have the gradient that the audit takes for granted, and change nothing for other rows."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset, default_collate

from dpmodel.audit.canaries import (
    TABLES,
    CanaryCollation,
    CanaryLoss,
    CanaryNetwork,
    CanaryRows,
    WatchedLoader,
    flip_coins,
    read_examples,
)
from dpmodel.data.loader import poisson_loader
from monitors.errors import ConfigError


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, left, right):
        return {"scores": self.layer(left + right), "size": left.shape[0]}


def scores_loss(outputs, targets, reduction="mean"):
    return nn.functional.cross_entropy(outputs["scores"], targets, reduction=reduction)


def gradients(network, loss_fn, inputs, index, targets):
    network.zero_grad()
    loss_fn(network(inputs, torch.tensor([index])), targets).backward()
    return {name: value.grad.clone() for name, value in network.named_parameters()}


def cases():
    x, y = torch.randn(1, 3), torch.tensor([1])
    yield nn.Linear(3, 2), nn.CrossEntropyLoss(), x, y
    yield TwoInputs(), scores_loss, (x, 2 * x), y
    yield nn.Linear(3, 2), lambda outputs, targets: (outputs - targets).square().sum(), x, torch.randn(1, 2)


@pytest.mark.parametrize("case", range(3))
def test_a_canary_moves_its_own_coordinates_only(case):
    own, loss_fn, inputs, targets = list(cases())[case]
    network, loss = CanaryNetwork(own, 5, 10.0), CanaryLoss(loss_fn)
    found = gradients(network, loss, inputs, 4, targets)
    for table in TABLES:
        expected = torch.zeros(6, 1)
        expected[4] = 10.0 / 2**0.5
        assert torch.allclose(found.pop(f"{table}.weight"), expected)
    assert all(not grad.any() for grad in found.values())


@pytest.mark.parametrize("case", range(3))
def test_an_ordinary_row_has_its_own_gradient_and_a_blank_row_has_none(case):
    own, loss_fn, inputs, targets = list(cases())[case]
    network, loss = CanaryNetwork(own, 5, 10.0), CanaryLoss(loss_fn)
    found = gradients(network, loss, inputs, 0, targets)
    own.zero_grad()
    loss_fn(own(*inputs) if isinstance(inputs, tuple) else own(inputs), targets).backward()
    for name, value in own.named_parameters():
        assert torch.allclose(found[f"network.{name}"], value.grad)
    assert not any(found[f"{table}.weight"].any() for table in TABLES)
    assert not any(grad.any() for grad in gradients(network, loss, inputs, -3, targets).values())


def test_the_number_of_rows_says_nothing_about_the_coins():
    examples = [(torch.randn(3), torch.tensor(0)) for _ in range(4)]
    coins = np.array([True, False, True])
    rows = CanaryRows(examples, coins)
    assert len(rows) == 7
    assert rows.index.tolist() == [0, 0, 0, 0, 1, -2, 3]
    rows.blank()
    assert len(rows) == 7
    assert all(rows.index < 0)
    assert len(rows.index.unique()) == 7  # or the rows would count as repeated


def test_no_two_rows_share_a_stored_example():
    examples = [(torch.randn(3), torch.tensor(0)) for _ in range(4)]
    rows = CanaryRows(examples, np.ones(6, dtype=bool))
    inputs = [rows[row][0][0] for row in range(10)]
    assert len({value.data_ptr() for value in inputs}) == 10
    assert all(torch.equal(inputs[row], examples[row % 4][0]) for row in range(10))


def test_the_collation_of_the_data_is_used():
    def halves(rows):
        x, y = default_collate(rows)
        return x[:, :2], x[:, 2:], y

    rows = CanaryRows([(torch.arange(4.0) + k, torch.tensor(k)) for k in range(3)], np.array([True]))
    (inputs, index), targets = CanaryCollation(halves)([rows[2], rows[3]])
    assert [part.shape for part in inputs] == [(2, 2), (2, 2)]
    assert index.tolist() == [0, 1]
    assert targets.tolist() == [2, 0]


def test_the_loader_keeps_the_drawn_rows():
    loader = WatchedLoader(CanaryRows([(torch.zeros(2), torch.tensor(0))] * 50, np.ones(50, dtype=bool)), 10)
    drawn = [len(y) for _, y in loader]
    assert [len(rows) for rows in loader.drawn] == drawn


def test_examples_come_from_all_over_the_data():
    loader = poisson_loader(TensorDataset(torch.arange(100.0)[:, None], torch.zeros(100)), 10)
    read = read_examples(loader, 5)
    assert [float(x) for x, _ in read] == [0.0, 24.0, 49.0, 74.0, 99.0]
    with pytest.raises(ConfigError, match="at least 2 examples"):
        read_examples(poisson_loader(TensorDataset(torch.zeros(1, 1), torch.zeros(1)), 1), 5)


def test_coins_are_fair_and_fresh():
    first, second = flip_coins(20_000), flip_coins(20_000)
    assert abs(first.mean() - 0.5) < 0.03
    assert (first != second).any()
