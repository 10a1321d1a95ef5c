"""Networks that move rows by what they hold: book-keeping steps aside, and the numbers stay those of the loop."""

import pytest
import torch
from torch import nn

from mechanisms.engines import Batch, choose_engine
from mechanisms.engines.row_order import RowOrder
from mechanisms.units import ClippedUnit
from monitors.errors import UnsupportedModuleError

from .conftest import clip_of, close, exact_sum


class Sorting(nn.Module):
    """Sorts by the first feature, runs a layer, and puts the order back."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x):
        order = torch.argsort(x[:, 0], descending=True, stable=True)
        return self.b(torch.tanh(self.a(x[order]))[torch.argsort(order)])


class Packing(nn.Module):
    """Runs a layer on the tokens that are no padding."""

    def __init__(self):
        super().__init__()
        self.e, self.l, self.h = nn.Embedding(20, 4, padding_idx=0), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, tokens):
        used = tokens != 0
        h = self.e(tokens)
        rows = torch.tanh(self.l(h[used]))
        return self.h(torch.zeros_like(h).masked_scatter(used.unsqueeze(2), rows).sum(1))


class LastOfEach(nn.Module):
    """Takes the last token of each example, which keeps its row."""

    def __init__(self):
        super().__init__()
        self.e, self.h = nn.Embedding(20, 4), nn.Linear(4, 3)

    def forward(self, tokens):
        last = (tokens != 0).sum(1) - 1
        return self.h(self.e(tokens)[torch.arange(len(tokens)), last])


def tokens(*lengths):
    rows = [[1 + (3 * row + at) % 19 if at < length else 0 for at in range(6)] for row, length in enumerate(lengths)]
    return torch.tensor(rows), torch.arange(len(lengths)) % 3


def chosen(network, x, y):
    choice = choose_engine("auto", network, nn.CrossEntropyLoss(), ClippedUnit(1, len(y)), Batch(x[:2], y[:2]))
    batch = Batch(x, y)
    expected = exact_sum(choice.engine.unit, network, nn.CrossEntropyLoss(), batch, clip_of())
    found = choice.engine.clipped_sum(network, nn.CrossEntropyLoss(), batch, clip_of())
    assert close(found.norms, expected.norms, 1e-5)
    assert close(found.flat_grad, expected.flat_grad, 1e-5)
    return choice


def test_a_network_that_sorts_its_rows_is_left_to_another_engine_even_where_they_came_in_order():
    x = torch.randn(6, 3)
    choice = chosen(Sorting(), x[torch.argsort(x[:, 0], descending=True)], torch.arange(6) % 3)
    assert choice.engine.name == "vmap"
    assert "sorts rows by what they hold" in choice.reason


def test_a_network_that_packs_tokens_is_left_to_another_engine_even_where_the_first_are_of_one_length():
    choice = chosen(Packing(), *tokens(4, 4, 5, 3))
    assert choice.engine.name == "loop"
    assert "picks rows by what they hold (index)" in choice.reason


def test_a_choice_within_each_example_keeps_the_fast_engine():
    assert chosen(LastOfEach(), *tokens(4, 2, 6, 1)).engine.name == "bookkeeping"


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x.nonzero(),
        lambda x: torch.masked_select(x, x > 0),
        lambda x: x.unique(),
        lambda x: torch.repeat_interleave(x, torch.arange(len(x)), dim=0),
        lambda x: x.sort(dim=0),
        lambda x: x[:, 0].argsort(),
        lambda x: x.t().sort(dim=1),  # examples in the second dimension
        lambda x: x.flatten().argsort(),  # the rows of all examples together
        lambda x: x.topk(2, 0),
        lambda x: x[torch.randperm(len(x))],
        lambda x: nn.utils.rnn.pack_padded_sequence(x.unsqueeze(2), torch.full((len(x),), 4), batch_first=True),
    ],
)
def test_operations_that_move_rows_are_refused(operation):
    passes = [RowOrder(size) for size in (3, 5)]
    for order in passes:
        with order:
            operation(torch.randn(order.batch_size, 4))
    with pytest.raises(UnsupportedModuleError, match="rows by what they hold"):
        RowOrder.refuse(passes)


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x.sort(dim=1),
        lambda x: torch.zeros(30, 15).sort(dim=0),  # a constant, of a multiple of both sizes
        lambda x: torch.ones(30).nonzero(),
        lambda x: x.topk(2),
        lambda x: x.argsort(-1),
        lambda x: x.masked_fill(x > 0, 0.0),
        lambda x: x[:, torch.tensor([1, 0])],
        lambda x: x.flip(1),
        lambda x: x[:, torch.tensor([True, False, True, True])],
        lambda x: x.clone().index_put_((x > 0,), torch.tensor(0.0)),
        lambda x: torch.where(x > 0, x, 0.0),
        lambda x: torch.randperm(4),
        lambda x: x.repeat_interleave(2, dim=1),
        lambda x: x[:, torch.ones(4, 4).triu().nonzero()[:, 0]],
    ],
)
def test_operations_within_a_row_are_let_through(operation):
    passes = [RowOrder(size) for size in (3, 5)]
    for order in passes:
        with order:
            operation(torch.randn(order.batch_size, 4))
    RowOrder.refuse(passes)
