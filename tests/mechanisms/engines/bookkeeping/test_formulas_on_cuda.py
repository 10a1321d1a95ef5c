"""GPU formulas at realistic shapes: exact norms, sums that respect them, and a host that does not wait."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dpmodel.nets import LeNet5, StandardisedConv2d, resnet18
from dpmodel.training.batch_check import Additivity
from mechanisms.engines import Batch, BookKeepingEngine, choose_engine
from mechanisms.engines.bookkeeping.layers.rules import Call, rule_for
from mechanisms.units import ClippedUnit

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DEVICE = "cuda"
#: Layers of LeNet5, a CIFAR network, ResNet18, vision transformers and a wide ResNet: layer, shape of inputs, examples.
CONVOLUTIONS = [
    (lambda: nn.Conv2d(1, 6, 5), (1, 32, 32), 512),
    (lambda: nn.Conv2d(6, 16, 5), (6, 14, 14), 100),
    (lambda: nn.Conv2d(32, 32, 3, padding=1), (32, 32, 32), 128),
    (lambda: nn.Conv2d(128, 128, 3, padding=1), (128, 8, 8), 64),
    (lambda: nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False), (3, 32, 32), 64),
    (lambda: nn.Conv2d(64, 128, 3, stride=2, padding=1, bias=False), (64, 8, 8), 64),
    (lambda: nn.Conv2d(256, 512, 1, stride=2, bias=False), (256, 2, 2), 16),
    (lambda: nn.Conv2d(48, 48, 3, padding=1, groups=48), (48, 14, 14), 16),
    (lambda: nn.Conv2d(3, 96, 16, stride=16), (3, 64, 64), 8),
    (lambda: nn.Conv1d(16, 32, 5, padding=2), (16, 100), 64),
    (lambda: StandardisedConv2d(64, 128, 3, stride=2, padding=1), (64, 32, 32), 32),
]


@pytest.mark.parametrize("number", range(len(CONVOLUTIONS)))
def test_every_formula_has_the_norms_of_what_it_adds(number):
    make, shape, batch = CONVOLUTIONS[number]
    layer, x = make().to(DEVICE), torch.randn(batch, *shape, device=DEVICE)
    g = torch.randn_like(layer(x).detach()) * torch.logspace(-3, 3, batch, device=DEVICE).view(-1, *[1] * len(shape))
    wide = rule_for(layer).example_gradients(Call(layer, (x.double(),), g.double(), ("weight",)))["weight"].flatten(1)
    factors = torch.rand(batch, device=DEVICE) / wide.norm(dim=1).float()
    formulas = rule_for(layer).formulas(Call(layer, (x,), g, ("weight",)))["weight"]
    assert "grouped" in [formula.name for formula in formulas]
    for formula in formulas:
        term, out = formula.run(), torch.zeros(wide.shape[1], device=DEVICE)
        assert torch.allclose(term.squared_norms.double(), wide.square().sum(1), rtol=1e-4), formula.name
        term.add_to(out, factors)
        expected = factors.double() @ wide
        assert float((out.double() - expected).abs().max()) <= 1e-5 * float(expected.abs().max()), formula.name
        for alone in (0, batch - 1):
            out.zero_()
            term.add_to(out, torch.eye(batch, device=DEVICE)[alone])
            added, stated = float(out.double().norm()), float(term.squared_norms[alone].double().sqrt())
            assert added <= stated * (1 + 1e-5), (formula.name, alone)


@pytest.mark.parametrize("number", range(len(CONVOLUTIONS)))
def test_every_formula_gives_exactly_zero_for_an_example_that_is_left_out(number, without_waiting):
    make, shape, batch = CONVOLUTIONS[number]
    layer, x = make().to(DEVICE), torch.randn(batch, *shape, device=DEVICE)
    g = torch.randn_like(layer(x).detach())
    keep = torch.arange(batch, device=DEVICE) % 3 != 1
    expected = rule_for(layer).example_gradients(Call(layer, (x,), g, ("weight",)))["weight"][keep].sum(0).flatten()
    x[~keep] = g[~keep] = torch.nan
    before = x.clone(), g.clone()
    for formula in rule_for(layer).formulas(Call(layer, (x,), g, ("weight",)))["weight"]:
        term, out = formula.run(), torch.zeros(len(expected), device=DEVICE)
        with without_waiting():
            term.keep(keep).add_to(out, keep.float())
        assert float((out - expected).abs().max()) <= 1e-4 * float(expected.abs().max()), formula.name
        for now, then in zip((x, g), before, strict=True):
            assert torch.equal(now.nan_to_num(7), then.nan_to_num(7)), (formula.name, "others use this memory")


def test_convolutions_in_tf32_are_not_refused(clip, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    torch.manual_seed(0)
    network, loss_fn = resnet18().to(DEVICE), nn.CrossEntropyLoss()
    x, y = torch.randn(64, 3, 32, 32, device=DEVICE), torch.arange(64, device=DEVICE) % 10
    choice = choose_engine("auto", network, loss_fn, ClippedUnit(1, 64), Batch(x[:2], y[:2]))
    assert choice.engine.name == "bookkeeping", choice.reason
    Additivity(network, loss_fn, choice.engine, clip)(Batch(x, y))
    assert torch.backends.cudnn.allow_tf32


class Words(nn.Module):
    """Tables of words and of positions, and an encoder layer."""

    def __init__(self):
        super().__init__()
        self.words, self.positions = nn.Embedding(50, 32), nn.Embedding(20, 32)
        self.layer = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True)
        self.head = nn.Linear(32, 5)

    def forward(self, tokens):
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.head(self.layer(self.words(tokens) + self.positions(places)).mean(1))


def test_the_host_does_not_wait_for_a_sum(clip, without_waiting):
    cases = [(LeNet5(init="torch"), torch.randn(64, 1, 32, 32)), (Words(), torch.randint(0, 50, (64, 20)))]
    for network, x in cases:
        network, batch = network.to(DEVICE), Batch(x.to(DEVICE), torch.arange(64, device=DEVICE) % 5)
        engine = BookKeepingEngine(ClippedUnit(1, 64))
        engine.clipped_sum(network, nn.CrossEntropyLoss(), batch, clip)
        for _ in range(3):  # beyond the passes that are watched for escapes
            engine.clipped_sum(network, nn.CrossEntropyLoss(), batch, clip)
        with without_waiting():
            summed = engine.clipped_sum(network, nn.CrossEntropyLoss(), batch, clip)
        assert summed.tally.is_late
        assert summed.loss > 0.0
        assert not summed.tally.is_late
