from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dpmodel.training.batch_check import NOT_COMPARED
from mechanisms.engines import ENGINES, BookKeepingEngine
from mechanisms.noise import Gaussian
from monitors.errors import UnprotectedUpdateError

REFUSED = "differs from the sums of its halves by"


class FromEightRowsOn(nn.Module):
    """A normalisation over the batch that a trial with few examples does not reveal."""

    def forward(self, x):
        return x if len(x) < 8 else (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()


class OfTheLargest(nn.Module):
    """Divides by the largest entry of the batch, once there is a large one."""

    def forward(self, x):
        return x / x.abs().amax().clamp(min=1.0)


def network(*before):
    return nn.Sequential(*before, nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


@pytest.fixture
def quiet_start(make_data):
    """The first rows are small, the others are not."""
    data = make_data(n=64)
    data.tensors[0][:8] *= 0.01
    data.tensors[0][8:] *= 3.0
    return DataLoader(data, batch_size=16)


class Broken(BookKeepingEngine):
    """Adds a hundredth of the bound to every entry of every sum."""

    def partial_sum(self, network, losses, batch, clip, layout, total):
        part = super().partial_sum(network, losses, batch, clip, layout, total)
        total += 0.01 * clip.norm_bound
        return part


@pytest.fixture
def broken(monkeypatch):
    monkeypatch.setattr(Broken, "refuses", classmethod(lambda *args: None))
    monkeypatch.setattr(ENGINES, "get", lambda name: Broken)
    monkeypatch.setattr(ENGINES, "create", lambda name, *args, **options: Broken(*args, **options))


@pytest.mark.parametrize("layer", [nn.Identity, lambda: nn.Dropout(0.5)])
def test_an_error_of_a_hundredth_of_the_bound_is_found_before_the_first_step(make_model, quiet_start, broken, layer):
    model = make_model(network(layer()), engine="bookkeeping", norm_bound=0.01)
    with pytest.raises(UnprotectedUpdateError, match=REFUSED):
        model.fit(quiet_start, epochs=3)
    assert model.ledger.total == 0


class Noisy(nn.Module):
    def forward(self, x):
        return x + 0.1 * torch.randn_like(x)


def test_sums_of_a_network_that_always_draws_are_not_compared_and_the_ledger_says_so(make_model, quiet_start):
    model = make_model(network(Noisy()))
    model.fit(quiet_start, epochs=1)
    assert NOT_COMPARED in model.ledger.notes


@pytest.mark.parametrize("engine", ["auto", "bookkeeping", "vmap", "loop"])
@pytest.mark.parametrize("layer", [FromEightRowsOn, OfTheLargest, nn.Identity])
@pytest.mark.sample(12)
def test_a_layer_that_mixes_a_batch_sees_each_example_alone(make_model, quiet_start, engine, layer):
    model = make_model(network(layer()), engine=engine, norm_bound=0.01)
    model.fit(quiet_start, epochs=1)
    assert model.ledger.total == 4


@pytest.mark.parametrize("options", [{}, {"micro_batches": 4}, {"sampling": "shuffle"}, {"precision": "bf16"}], ids=str)
@pytest.mark.parametrize("layer", [nn.Identity, lambda: nn.Dropout(0.5)])
@pytest.mark.sample(8)
def test_sound_networks_are_accepted_over_many_batches(make_model, quiet_start, options, layer):
    model = make_model(network(layer()), engine="bookkeeping", norm_bound=0.01, **options)
    model.fit(quiet_start, epochs=30)
    assert model.ledger.total == 120


def test_the_check_does_not_change_the_training(quiet_start, make_model, monkeypatch):
    def weights():
        torch.manual_seed(3)
        model = make_model(network(), engine="bookkeeping", seed=5, noise_mech=Gaussian(seed=7))
        model.fit(quiet_start, epochs=2)
        return nn.utils.parameters_to_vector(model.network.parameters()).detach()

    looked_at = weights()
    monkeypatch.setattr("dpmodel.training.batch_check.Additivity.__call__", lambda self, batch: None)
    assert torch.equal(looked_at, weights())


class Remembering(nn.Module):
    """Centres by a running mean of the outputs, which carries no noise."""

    reduction = "mean"

    def __init__(self):
        super().__init__()
        self.register_buffer("centre", torch.zeros(3))

    def forward(self, outputs, targets):
        losses = F.cross_entropy(outputs - self.centre, targets, reduction=self.reduction)
        with torch.no_grad():
            self.centre.mul_(0.9).add_(outputs.detach().mean(0) * 0.1)
        return losses


@pytest.mark.parametrize("engine", ["auto", "vmap", "loop"])
@pytest.mark.sample(3)
def test_a_loss_that_keeps_statistics_of_the_data_trains_nothing(make_model, loader, engine):
    loss = Remembering()
    model = make_model(network(), loss_fn=loss, engine=engine)
    with pytest.raises((UnprotectedUpdateError, ValueError)):
        model.fit(loader, epochs=1)
    assert model.ledger.total == 0


@pytest.mark.parametrize("size", [64, 6000])
def test_rounding_of_many_similar_gradients_is_accepted(make_model, size):
    data = TensorDataset(torch.randn(size, 4) + 2, torch.zeros(size, dtype=torch.long))
    model = make_model(nn.Linear(4, 3))
    model.fit(DataLoader(data, batch_size=size), epochs=1)
    assert model.ledger.total == 1
