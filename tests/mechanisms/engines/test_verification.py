from __future__ import annotations

import pytest
import torch
from torch import nn

from mechanisms.engines import Batch, BookKeepingEngine, VmapEngine, verification
from mechanisms.engines.verification import disagreement


class Off(VmapEngine):
    """An engine that is wrong in one parameter."""

    index, scale = 0, 1.01

    def partial_sum(self, network, losses, batch, clip, layout, total):
        part = super().partial_sum(network, losses, batch, clip, layout, total)
        layout.views(total)[self.index].mul_(self.scale)
        return part


NETWORK = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
EXAMPLE = Batch(torch.randn(1, 4), torch.tensor([1]))


def test_an_exact_engine_has_no_disagreement_even_on_one_example():
    for engine in (BookKeepingEngine, VmapEngine):
        assert disagreement(engine, NETWORK, nn.CrossEntropyLoss(), EXAMPLE) is None


def test_an_error_of_one_percent_in_one_parameter_is_found_and_named():
    Off.index = 2
    assert "layer '2'" in disagreement(Off, NETWORK, nn.CrossEntropyLoss(), EXAMPLE)
    assert "'2.weight'" in disagreement(Off, NETWORK, nn.CrossEntropyLoss(), EXAMPLE)


def test_networks_that_draw_in_all_modes_are_compared_with_equal_seeds():
    class Noisy(nn.Linear):
        def forward(self, x):
            return super().forward(x + torch.randn_like(x))

    for engine in (VmapEngine, BookKeepingEngine):
        assert disagreement(engine, Noisy(4, 3), nn.CrossEntropyLoss(), EXAMPLE) is None
    Off.index = 0
    problem = disagreement(Off, nn.Sequential(Noisy(4, 3)), nn.CrossEntropyLoss(), EXAMPLE)
    assert "random numbers even in evaluation mode, and with equal seeds layer '0'" in problem


def test_a_kernel_that_is_wrong_for_a_batch_of_one_is_outvoted():
    class Transposed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4, affine=True)
            self.mix, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            h = self.norm(self.conv(x)).flatten(2).transpose(1, 2)
            return self.head(torch.tanh(self.mix(h)).mean(1))

    example = Batch(torch.randn(3, 1, 7, 7), torch.tensor([0, 1, 2]))
    assert disagreement(BookKeepingEngine, Transposed(), nn.CrossEntropyLoss(), example) is None


class Steep(nn.Module):
    """Amplifies the rounding of the first layer."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(4, 16), nn.Linear(16, 3)

    def forward(self, x):
        return self.head(torch.sin(1e5 * self.first(x)) / 1e5)


class Coarse(Steep):
    """Rounds between its layers; perturbed inputs and weights in double precision do not reveal that."""

    offset = 2.0**14

    def forward(self, x):
        return self.head(torch.sin(8 * (self.first(x) + self.offset - self.offset)))


class RoundsBetween(VmapEngine):
    """Rounds between the layers of ``Coarse`` to a different grid."""

    def clipped_sum(self, network, loss_fn, batch, clip, out=None):
        network.offset = 2 * Coarse.offset
        try:
            return super().clipped_sum(network, loss_fn, batch, clip, out)
        finally:
            network.offset = Coarse.offset


class RoundsOtherwise(VmapEngine):
    """Computes with weights whose last bits are different."""

    def clipped_sum(self, network, loss_fn, batch, clip, out=None):
        values = [value.data for value in network.parameters()]
        for parameter, value in zip(network.parameters(), values, strict=True):
            parameter.data = value * (1 + torch.finfo(value.dtype).eps * torch.randn_like(value))
        try:
            return super().clipped_sum(network, loss_fn, batch, clip, out)
        finally:
            for parameter, value in zip(network.parameters(), values, strict=True):
                parameter.data = value


class WrongInSingle(VmapEngine):
    """Wrong in single precision only, by more than the network's rounding."""

    def clipped_sum(self, network, loss_fn, batch, clip, out=None):
        found = super().clipped_sum(network, loss_fn, batch, clip, out)
        if found.flat_grad.dtype == torch.float32:
            found.flat_grad.mul_(1.5)
        return found


@pytest.mark.parametrize("network", [Steep(), NETWORK], ids=["steep", "plain"])
def test_rounding_that_a_network_amplifies_is_distinguished_from_a_wrong_gradient(network):
    example = Batch(torch.randn(3, 4), torch.tensor([0, 1, 2]))
    assert disagreement(RoundsOtherwise, network, nn.CrossEntropyLoss(), example) is None
    Off.index = 0
    for wrong in (Off, WrongInSingle):
        assert "does not give the gradients" in disagreement(wrong, network, nn.CrossEntropyLoss(), example)


def test_rounding_between_layers_is_distinguished_from_a_wrong_gradient():
    torch.manual_seed(0)
    network, example = Coarse(), Batch(torch.randn(3, 4), torch.tensor([0, 1, 2]))
    assert disagreement(RoundsBetween, network, nn.CrossEntropyLoss(), example) is None
    assert "does not give the gradients" in disagreement(WrongInSingle, network, nn.CrossEntropyLoss(), example)


def test_the_rounding_check_runs_only_for_a_large_difference(monkeypatch):
    asked = []
    monkeypatch.setattr(verification, "_is_rounding", lambda *args: asked.append(args))
    example = Batch(torch.randn(3, 4), torch.tensor([0, 1, 2]))
    assert disagreement(RoundsOtherwise, NETWORK, nn.CrossEntropyLoss(), example) is None
    assert not asked
    assert disagreement(RoundsOtherwise, Steep(), nn.CrossEntropyLoss(), example) is not None
    assert asked
