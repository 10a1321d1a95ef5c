from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm
from torch.utils.data import DataLoader, TensorDataset

from dpmodel import validate
from mechanisms.clipping import Fixed
from mechanisms.engines import ENGINES, Batch
from mechanisms.engines.power_iterations import PowerIterations
from mechanisms.units import ClippedUnit

FORMS = {
    "parametrization": parametrizations.spectral_norm,
    "of several iterations": lambda layer: parametrizations.spectral_norm(layer, n_power_iterations=3),
    "hook": spectral_norm,
    "behind another": lambda layer: parametrizations.spectral_norm(parametrizations.weight_norm(layer)),
}


def built(form):
    return nn.Sequential(FORMS[form](nn.Linear(4, 6)), nn.LeakyReLU(0.2), FORMS[form](nn.Linear(6, 3)))


def buffers(network):
    return {name: value.clone() for name, value in network.named_buffers()}


def equal(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("form", FORMS)
def test_held_passes_do_not_change_the_estimates_and_one_advance_is_one_forward_pass(form):
    network = built(form)
    plain, x = copy.deepcopy(network), torch.randn(2, 4)
    iterations, before = PowerIterations(network), buffers(network)
    with iterations.held():
        network(x)
        network(x)
        assert equal(buffers(network), before)
        iterations.advance()
        assert not equal(buffers(network), before)
        held = network(x)
    assert torch.allclose(held, plain(x), atol=1e-6)
    assert equal(buffers(network), buffers(plain))
    after = buffers(network)
    network(x)
    assert not equal(buffers(network), after)  # no longer held


@pytest.mark.sample(12)
@pytest.mark.parametrize("engine", ENGINES.names())
@pytest.mark.parametrize("form", FORMS)
def test_every_engine_gives_the_clipped_gradients_of_plain_torch_for_any_batch_size(engine, form):
    network, loss_fn, clip = built(form).train(), nn.CrossEntropyLoss(), Fixed()
    clip.start(0.5)
    x, y = torch.randn(5, 4), torch.randint(0, 3, (5,))
    with PowerIterations(network).held():
        if ENGINES.get(engine).refuses(network, loss_fn, ClippedUnit(1, 5), Batch(x, y)):
            pytest.fail(f"{engine} refuses {form}")
        found = ENGINES.create(engine, ClippedUnit(1, 5)).clipped_sum(network, loss_fn, Batch(x, y), clip).flat_grad
        expected = torch.zeros_like(found)
        for row in range(5):
            loss = loss_fn(network(x[row : row + 1]), y[row : row + 1])
            gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))])
            expected += gradient * min(1.0, float(0.5 / gradient.norm()))
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.sample(4)
def test_the_estimates_of_a_trained_network_depend_only_on_weights_and_steps(make_model, form):
    torch.manual_seed(1)
    network = built(form)
    assert validate(network, torch.randn(4, 4)) == []
    found = []
    for data in (torch.randn(64, 4), torch.randn(64, 4)):
        trained = copy.deepcopy(network)
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.0)
        loader = DataLoader(TensorDataset(data, torch.randint(0, 3, (64,))), batch_size=16)
        make_model(trained, optimizer=optimizer).fit(loader, epochs=2)
        found.append(buffers(trained))
    assert equal(*found)
    assert not equal(found[0], buffers(network))
    for layer in (trained[0], trained[2]):
        trained.eval()(torch.zeros(1, 4))
        assert torch.linalg.matrix_norm(layer.weight.detach(), 2) == pytest.approx(1.0, abs=0.2)


def test_networks_without_spectral_normalisation_have_no_power_iterations():
    assert not PowerIterations(nn.Sequential(nn.Linear(2, 2), parametrizations.weight_norm(nn.Linear(2, 2))))
