from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mechanisms.clipping import Fixed
from mechanisms.engines import Batch, BookKeepingEngine, LoopEngine
from mechanisms.engines.bookkeeping.pool_first import PoolFirst, pooling_of
from mechanisms.units import ClippedUnit

ALL = frozenset(range(10))


class Double(torch.autograd.Function):
    """A function that function modes do not see."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return torch.mul(x, 2)

    @staticmethod
    def setup_context(ctx, inputs, output):
        """Save nothing."""

    @staticmethod
    def backward(ctx, grad):
        return grad * 2


class Net(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.body = body

    def forward(self, x):
        return self.body(self.conv(x))


def value_and_gradient(network, x, moved):
    with PoolFirst(moved) as order:
        output = network(x)
        loss = output.square().sum()
    assert order.sound
    return output, torch.autograd.grad(loss, network.conv.weight)[0]


BODIES = {
    "tanh": lambda h: F.max_pool2d(torch.tanh(h), 2),
    "relu": lambda h: F.max_pool2d(F.relu(h), 2),
    "method": lambda h: F.max_pool2d(h.sigmoid(), 3, stride=2, padding=1),
    "modules": nn.Sequential(nn.SELU(), nn.MaxPool2d(3)),
    "one dimension": lambda h: F.max_pool1d(torch.relu(h.flatten(2)), 4),
}
OTHER = {
    "indices": lambda h: F.max_pool2d(torch.tanh(h), 2, return_indices=True)[0],
    "skip connection": lambda h: (lambda a: F.max_pool2d(a, 2).mean((2, 3)) + a.mean((2, 3)))(torch.tanh(h)),
    "skip past autograd": lambda h: (lambda a: F.max_pool2d(a, 2).mean() + Double.apply(a).mean())(torch.tanh(h)),
    "shape is read": lambda h: (lambda a: F.max_pool2d(a, a.shape[-1] // 4))(torch.tanh(h)),
    "in place after": lambda h: F.max_pool2d(torch.mul(a := torch.relu(h * 1.0), -1.0, out=None).add_(a), 2),
    "no pooling": lambda h: torch.tanh(h).mean(1),
    "input changes": lambda h: (lambda g, a: F.max_pool2d(a + g.mul_(2.0), 2))(
        *(lambda g: (g, torch.relu(g)))(h * 1.0)
    ),
    "falling": lambda h: F.max_pool2d(-torch.tanh(h), 2),
    "in a list": lambda h: F.max_pool2d(torch.cat([torch.tanh(h), h]), 2),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_deferred_activation_changes_neither_values_nor_gradients(name):
    torch.manual_seed(0)
    network, x = Net(BODIES[name]).double(), torch.randn(4, 1, 10, 10, dtype=torch.float64)
    expected, found = value_and_gradient(network, x, frozenset()), value_and_gradient(network, x, ALL)
    for left, right in zip(expected, found, strict=True):
        assert torch.allclose(left, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [*BODIES, *OTHER])
def test_only_activations_directly_before_a_pooling_are_deferred(name):
    network = Net((BODIES | OTHER)[name])
    moved = pooling_of(lambda: network(torch.randn(2, 1, 10, 10)))[1]
    assert moved == ({0} if name in BODIES else set())


def test_a_deferred_activation_runs_on_a_quarter_of_the_entries():
    sizes = []

    class Watch(nn.Module):
        def forward(self, h):
            h.register_hook(lambda grad: sizes.append(int((grad != 0).sum())))
            return F.max_pool2d(torch.tanh(h), 2)

    network = Net(Watch())
    output, _ = value_and_gradient(network, torch.randn(1, 1, 10, 10), ALL)
    assert type(output.grad_fn).__name__ == "TanhBackward0"
    assert sizes == [3 * 16]


class Changing(nn.Module):
    """A pooling follows the second activation in some passes only."""

    pooled = True

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 3, 3), nn.Linear(3, 2)

    def forward(self, x):
        h = torch.tanh(self.conv(x))
        return self.head((F.max_pool2d(h, 2) if self.pooled else Double.apply(h)).mean((2, 3)))


class Scaled(nn.Module):
    """A layer without a rule that ends in an activation."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3, 1, 1))

    def forward(self, x):
        return torch.tanh(x * self.scale)


def test_an_activation_at_the_end_of_a_layer_without_a_rule_is_exact():
    network = nn.Sequential(nn.Conv2d(1, 3, 3), Scaled(), nn.MaxPool2d(2), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten())
    batch, unit, clip = Batch(torch.randn(4, 1, 10, 10), torch.tensor([0, 1, 1, 0])), ClippedUnit(1, 4), Fixed()
    clip.start(1.0)
    expected = LoopEngine(unit).clipped_sum(network, nn.CrossEntropyLoss(), batch, clip)
    engine = BookKeepingEngine(unit)
    for _ in range(2):
        found = engine.clipped_sum(network, nn.CrossEntropyLoss(), batch, clip)
        assert torch.allclose(found.flat_grad, expected.flat_grad, rtol=1e-5, atol=1e-6)
        assert torch.allclose(found.norms, expected.norms, rtol=1e-5)


def test_code_outside_the_functions_of_torch_receives_real_tensors():
    network = Net(lambda h: F.max_pool2d(Double.apply(torch.tanh(h)), 2))
    assert pooling_of(lambda: network(torch.randn(2, 1, 10, 10)))[1] == frozenset()


def test_a_network_that_takes_a_different_path_later_is_exact():
    network, clip = Changing(), Fixed()
    clip.start(1.0)
    batch = Batch(torch.randn(4, 1, 10, 10), torch.tensor([0, 1, 1, 0]))
    unit = ClippedUnit(1, 4)
    engine = BookKeepingEngine(unit)
    for pooled in (True, False):
        network.pooled = pooled
        expected = LoopEngine(unit).clipped_sum(network, nn.CrossEntropyLoss(), batch, clip).flat_grad
        found = engine.clipped_sum(network, nn.CrossEntropyLoss(), batch, clip).flat_grad
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


class LatePool(nn.Module):
    """Pools in training passes, once that is switched on."""

    def __init__(self):
        super().__init__()
        self.conv, self.head, self.pooled = nn.Conv2d(1, 3, 3), nn.Linear(3, 2), False

    def forward(self, x):
        h = torch.tanh(self.conv(x))
        return self.head((F.max_pool2d(h, 2) if self.pooled else h).mean((2, 3)))


def test_a_network_that_never_pools_runs_without_a_function_mode(monkeypatch):
    network, clip, seen = LatePool(), Fixed(), []
    clip.start(1.0)
    batch = Batch(torch.randn(4, 1, 10, 10), torch.tensor([0, 1, 1, 0]))
    engine = BookKeepingEngine(ClippedUnit(1, 4))
    engine.clipped_sum(network, nn.CrossEntropyLoss(), batch, clip)
    monkeypatch.setattr(PoolFirst, "__torch_function__", lambda self, func, *rest: seen.append(func))
    engine.clipped_sum(network, nn.CrossEntropyLoss(), batch, clip)
    assert not seen


def test_pooling_that_begins_after_the_survey_is_exact():
    network, clip = LatePool(), Fixed()
    clip.start(1.0)
    batch = Batch(torch.randn(4, 1, 10, 10), torch.tensor([0, 1, 1, 0]))
    unit = ClippedUnit(1, 4)
    engine = BookKeepingEngine(unit)
    for network.pooled in (False, True):
        expected = LoopEngine(unit).clipped_sum(network, nn.CrossEntropyLoss(), batch, clip).flat_grad
        found = engine.clipped_sum(network, nn.CrossEntropyLoss(), batch, clip).flat_grad
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_reading_an_attribute_of_one_activation_keeps_the_others_deferred():
    def body(h):
        pooled = F.max_pool2d(torch.tanh(h), 2)
        return torch.relu(pooled).flatten(1).sum(1)

    assert pooling_of(lambda: Net(body)(torch.randn(2, 1, 10, 10))) == (True, frozenset({0}))


def test_the_survey_finds_pooling_that_can_be_sped_up():
    x = torch.randn(2, 1, 10, 10)
    assert pooling_of(lambda: Net(lambda h: torch.tanh(h).mean(1))(x)) == (False, frozenset())
    assert pooling_of(lambda: Net(lambda h: F.max_pool2d(h, 3))(x)) == (False, frozenset())
    assert pooling_of(lambda: Net(lambda h: F.max_pool2d(h, 2))(x)) == (True, frozenset())
    assert pooling_of(lambda: Net(lambda h: F.max_pool2d(torch.tanh(h), 3))(x)) == (True, frozenset({0}))
