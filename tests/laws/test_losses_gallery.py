"""Law: a loss gives the results of one example at a time, or it is refused before any budget is spent."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from dpmodel import DPModel, NoiseMechanismsFactory, poisson_loader
from mechanisms.engines.base import ROUNDING_MARGIN
from mechanisms.engines.batch import all_tensors, call_network, map_tensors
from monitors.errors import DPModelError

from .losses import EXAMPLES, UNUSABLE, WORKING, several

#: The bound clips some gradients but not others. In double precision, the only difference is the margin that clipping
#: keeps below the bound.
BOUND, TOLERANCE = 0.5, 1.1 * ROUNDING_MARGIN


@pytest.fixture(autouse=True)
def _seeded():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


class Rows(Dataset):
    """The examples of nested tensors."""

    def __init__(self, x, y):
        self.x, self.y, self.size = x, y, len(all_tensors(y)[0])

    def __getitem__(self, row):
        return tuple(map_tensors(lambda value: value[row], nest) for nest in (self.x, self.y))

    def __len__(self):
        return self.size


def row(nest, place):
    return map_tensors(lambda value: value[place : place + 1], nest)


def weights(network):
    return torch.cat([value.detach().flatten() for value in network.parameters()])


def one_at_a_time(network, loss_fn, x, y):
    """The losses of the examples and the clipped sum, by plain autograd."""
    parameters, total, losses = list(network.parameters()), 0.0, []
    for place in range(EXAMPLES):
        loss = loss_fn(call_network(network, row(x, place)), row(y, place))
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        flat = torch.cat(
            [
                (torch.zeros_like(value) if grad is None else grad).flatten()
                for value, grad in zip(parameters, found, strict=True)
            ]
        )
        total = total + flat * min(1.0, BOUND / max(float(flat.norm()), 1e-300))
        losses.append(float(loss.detach()))
    return losses, total


@pytest.mark.sample(75)
@pytest.mark.parametrize("case", WORKING, ids=str)
def test_a_loss_gives_the_same_training_and_metric_as_one_example_at_a_time(case, capsys):
    network, x, y, loss_fn = case.network(), case.x(), case.y(), case.loss()
    losses, expected = one_at_a_time(network, (case.alone or case.loss)(), x, y)
    assert float(expected.norm()) > 0
    optimizer = torch.optim.SGD(network.parameters(), lr=float(EXAMPLES))
    model = DPModel(network, loss_fn, optimizer, norm_bound=BOUND, sampling="shuffle")
    before, measured = weights(network), model.eval(Rows(x, y))["loss"]
    assert measured == pytest.approx(math.fsum(losses) / EXAMPLES, rel=1e-9)
    held_out = case.x(), case.y()
    history = model.fit(DataLoader(Rows(x, y), batch_size=EXAMPLES, shuffle=True), valid_loader=Rows(*held_out))
    found = before - weights(network)
    off = float((found - expected).norm() / expected.norm())
    assert off <= TOLERANCE, f"off by {off:.1e}; {model.explain_engine()}"
    losses, _ = one_at_a_time(network, (case.alone or case.loss)(), *held_out)
    assert history[-1].metrics["valid_loss"] == pytest.approx(math.fsum(losses) / EXAMPLES, rel=1e-9)
    shown = capsys.readouterr().out
    assert ("" if case.said is None else case.said) in shown
    assert case.said is not None or not re.search("cancels|their losses|class weights|exactly zero", shown), shown


@pytest.mark.parametrize("case", UNUSABLE, ids=str)
@pytest.mark.sample(25)
def test_an_unusable_loss_is_refused_before_any_budget_is_spent(case):
    network, x, y = case.network(), several(case.x, 4), several(case.y, 4)
    noise = NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=1.0)
    loss_fn, before = case.loss(), weights(network)
    own = list(loss_fn.parameters()) if isinstance(loss_fn, nn.Module) else []
    optimizer = torch.optim.SGD([*network.parameters(), *own], lr=0.1)
    model = DPModel(network, loss_fn, optimizer, norm_bound=BOUND, noise_mech=noise)
    with pytest.raises(DPModelError) as caught:
        model.fit(poisson_loader(Rows(x, y), batch_size=4 * EXAMPLES))
    for words in case.refused:
        assert words in str(caught.value)
    assert model.ledger.total == 0
    assert torch.equal(before, weights(network))


def test_the_gallery_has_at_least_the_promised_size():
    assert len(WORKING) >= 24
    assert len(UNUSABLE) >= 8
