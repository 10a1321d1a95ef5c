"""What a training leaves on the network: weights that can be read, and nothing of the private batches."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.data import TensorDataset

from dpmodel import DPModel, NoiseMechanismsFactory, poisson_loader


class Remembers(nn.Module):
    """Keeps what it has computed, as many networks do for inspection."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 4), nn.Linear(4, 2)
        self.hidden, self.gain, self.log = None, None, []

    def forward(self, x):
        self.gain = self.first.weight.abs()
        self.hidden = self.first(x).relu()
        self.log.append(self.hidden)
        self.last.cache = x
        return self.last(self.hidden)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.last, self.state = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2), None

    def forward(self, x):
        outputs, self.state = self.cell(x.reshape(-1, 2, 3))
        return self.last(outputs[:, -1])


def normalised():
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 4)), nn.ReLU(), nn.Linear(4, 2))


def held(value, path=""):
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from held(inner, f"{path}.{name}")
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from held(inner, path)


def attributes(network):
    return [pair for name, module in network.named_modules() for pair in held(dict(vars(module), _modules=None), name)]


@pytest.mark.sample(6)
@pytest.mark.parametrize("engine", ["auto", "loop"])
@pytest.mark.parametrize("build", [Remembers, Recurrent, normalised])
def test_nothing_remains_except_readable_weights(build, engine):
    network = build()
    before = [path for path, _ in attributes(network)]
    noise = NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=1.0)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    model = DPModel(network, nn.CrossEntropyLoss(), optimizer, noise_mech=noise, engine=engine)
    model.fit(poisson_loader(TensorDataset(torch.randn(40, 6), torch.randint(0, 2, (40,))), batch_size=10))
    assert [path for path, _ in attributes(network)] == before
    for _, value in attributes(network):
        assert torch.isfinite(value.sum()).item()
        assert value.grad is None
    copy.deepcopy(network)(torch.randn(3, 6)).sum().backward()
