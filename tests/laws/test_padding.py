"""Law: a row listed by ``padding_rows`` has a gradient of exactly zero, and training never changes it."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from mechanisms.clipping import Fixed
from mechanisms.engines import ENGINES, Batch
from mechanisms.engines.padding import padding_rows
from mechanisms.units import ClippedUnit

WORDS, WIDTH, LENGTH = 7, 4, 5


class Words(nn.Module):
    """A bag-of-words classifier; ``kind`` determines the use of the table."""

    def __init__(self, kind: str, row: int | None) -> None:
        super().__init__()
        self.kind, self.row = kind, row
        if kind in ("sum", "mean", "max"):
            self.table = nn.EmbeddingBag(WORDS, WIDTH, mode=kind, padding_idx=row)
        else:
            self.table = nn.Embedding(WORDS, WIDTH, padding_idx=row)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, tokens):
        if self.kind == "functional":
            found = functional.embedding(tokens, self.table.weight, padding_idx=self.row).sum(1)
        elif self.kind == "tied":
            found = self.table(tokens).sum(1) @ self.table.weight.t() @ self.table.weight
        elif self.kind == "two":
            found = self.table(tokens).sum(1) + functional.embedding(tokens, self.table.weight).sum(1)
        else:
            found = self.table(tokens) if self.kind in ("sum", "mean", "max") else self.table(tokens).sum(1)
        return self.head(found)


def listed(network, tokens, loss_fn=None):
    example = Batch(tokens[:1], torch.zeros(1, dtype=torch.int64))
    return padding_rows(network, loss_fn or nn.CrossEntropyLoss(), example)


def norm_bound():
    clip = Fixed()
    clip.start(1.0)
    return clip


@pytest.mark.sample(15)
@pytest.mark.parametrize("kind", ["embedding", "functional", "sum", "mean", "max"])
@pytest.mark.parametrize("engine", ENGINES.names())
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_the_gradient_of_a_listed_row_is_always_exactly_zero(engine, kind, data):
    row = data.draw(st.integers(0, WORDS - 1))
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    network, tokens = Words(kind, row), torch.randint(0, WORDS, (6, LENGTH))
    tokens[data.draw(st.integers(0, 5))] = row
    nn.init.normal_(network.table.weight)  # including the padding row
    assert listed(network, tokens) == {"table.weight": [row]}
    if ENGINES.get(engine).refuses(network, nn.CrossEntropyLoss(), ClippedUnit(1, 6), Batch(tokens, tokens[:, 0] % 3)):
        return
    batch = Batch(tokens, torch.randint(0, 3, (6,)))
    found = ENGINES.create(engine, ClippedUnit(1, 6)).clipped_sum(network, nn.CrossEntropyLoss(), batch, norm_bound())
    assert not found.flat_grad[row * WIDTH : (row + 1) * WIDTH].any()
    assert found.flat_grad.any()


@pytest.mark.parametrize("kind", ["tied", "two"])
def test_a_table_with_a_second_use_is_not_listed(kind):
    assert listed(Words(kind, 0), torch.randint(0, WORDS, (2, LENGTH))) == {}


def test_a_table_used_by_the_loss_is_not_listed():
    network = Words("embedding", 0)

    def penalised(outputs, targets):
        return functional.cross_entropy(outputs, targets) + network.table.weight.square().sum()

    assert listed(network, torch.randint(0, WORDS, (2, LENGTH)), penalised) == {}


def test_tables_without_padding_and_frozen_ones_are_not_listed():
    tokens = torch.randint(0, WORDS, (2, LENGTH))
    frozen = Words("embedding", 0)
    frozen.table.requires_grad_(False)
    assert listed(Words("embedding", None), tokens) == listed(frozen, tokens) == {}


@pytest.mark.parametrize("kind", ["embedding", "sum", "tied"])
def test_training_keeps_the_listed_rows_and_adds_noise_to_all_others(make_model, kind):
    network = Words(kind, 2)
    before = copy.deepcopy(network.table.weight.detach())
    data = TensorDataset(torch.randint(0, 2, (32, LENGTH)), torch.randint(0, 3, (32,)))  # no example has words 3 to 6
    make_model(network).fit(DataLoader(data, batch_size=8), epochs=2)
    moved = (network.table.weight != before).any(dim=1)
    assert moved.tolist() == [True, True, kind == "tied", True, True, True, True]


def test_every_row_gets_noise_if_the_network_sees_floats(make_model):
    network = Words("embedding", 2)
    before = copy.deepcopy(network.table.weight.detach())
    data = TensorDataset(torch.randint(0, 2, (32, LENGTH)), torch.randint(0, 3, (32,)))
    make_model(network, engine="loop").fit(DataLoader(data, batch_size=8), epochs=1)
    assert (network.table.weight != before).any(dim=1).all()
