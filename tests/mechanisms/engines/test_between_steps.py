"""What an engine remembers of a network holds until the network changes."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from mechanisms.clipping import Fixed
from mechanisms.engines import ENGINES, Batch
from mechanisms.units import ClippedUnit
from monitors.errors import UnsupportedModuleError

UNIT, LOSS = ClippedUnit(1, 4), nn.CrossEntropyLoss()


class Doubling(nn.Module):
    """Doubles its input in evaluation mode."""

    def forward(self, x):
        return x if self.training else 2 * x


def network_of(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), Doubling(), nn.Linear(5, 3))


def batch_of(size, dtype):
    return Batch(torch.randn(size, 4, dtype=dtype), torch.randint(3, (size,)))


class Doubled(nn.Linear):
    """Doubles the output of its base."""

    def forward(self, x):
        return 2 * super().forward(x)


def patched(layer):
    layer.forward = lambda x: 2 * nn.functional.linear(x, layer.weight, layer.bias)


def same_parameters(layer):
    made = nn.Linear(5, 3)
    made.weight, made.bias = layer.weight, layer.bias
    return made


CHANGES = {
    "nothing": lambda network: None,
    "mode": lambda network: network.train(not network.training),
    "frozen": lambda network: network[0].weight.requires_grad_(not network[0].weight.requires_grad),
    "type": lambda network: network.to(torch.float32 if network[0].weight.dtype == torch.float64 else torch.float64),
    "parameter": lambda network: setattr(network[3], "weight", nn.Parameter(2 * network[3].weight.detach())),
    "layer": lambda network: network.__setitem__(1, nn.Softsign()),
    "layer with the same parameters": lambda network: network.__setitem__(3, same_parameters(network[3])),
    "class": lambda network: setattr(network[0], "__class__", Doubled),
    "patch": lambda network: patched(network[3]),
    "memory": lambda network: setattr(network[3].bias, "data", network[3].bias.data + 1.0),
}


@pytest.mark.sample(12)
@pytest.mark.parametrize("empty", [False, True], ids=["", "with empty batches"])
@pytest.mark.parametrize("isolation", ["verified", "trust"])
@pytest.mark.parametrize("name", ENGINES.names())
def test_each_step_gives_the_sum_of_a_new_engine(name, isolation, empty):
    clip, engine = Fixed(), ENGINES.create(name, UNIT)
    engine.boundary.isolation = isolation
    clip.start(0.5)
    networks = [network_of(1).train(), network_of(2).train()]
    for number, (first, second) in enumerate(itertools.product(CHANGES, repeat=2)):
        network = networks[number // 3 % 2]
        CHANGES[first](network)
        if empty:
            batch = batch_of(0, network[0].weight.dtype)
            assert not engine.clipped_sum(networks[number % 2], LOSS, batch, clip).flat_grad.any()
        CHANGES[second](network)
        batch = batch_of(4, network[0].weight.dtype)
        found = engine.clipped_sum(network, LOSS, batch, clip)
        expected = ENGINES.create(name, UNIT).clipped_sum(network, LOSS, batch, clip)
        assert found.flat_grad.dtype == expected.flat_grad.dtype
        torch.testing.assert_close(found.flat_grad, expected.flat_grad)
        torch.testing.assert_close(found.norms, expected.norms)
        assert found.loss == pytest.approx(expected.loss, rel=1e-6)


def test_a_backward_hook_between_steps_is_refused():
    network, clip, engine = network_of(1), Fixed(), ENGINES.create("bookkeeping", UNIT)
    clip.start(0.5)
    engine.clipped_sum(network, LOSS, batch_of(4, torch.float32), clip)
    network[1].register_full_backward_hook(lambda module, inputs, outputs: (2 * inputs[0],))
    with pytest.raises(UnsupportedModuleError, match="backward hook"):
        engine.clipped_sum(network, LOSS, batch_of(4, torch.float32), clip)
