from __future__ import annotations

import sys
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mechanisms.engines import ENGINES, Batch, choose_engine
from mechanisms.engines.state.escapes import Escapes
from mechanisms.units import ClippedUnit
from monitors.errors import UnprotectedUpdateError, UnsupportedModuleError

from ..conftest import clip_of, close, exact_sum

X, Y = torch.linspace(-1, 1, 24).view(6, 4), torch.arange(6) % 3
ELSEWHERE = types.ModuleType("a_module_that_no_code_names")
ELSEWHERE.kept = []
sys.modules[ELSEWHERE.__name__] = ELSEWHERE


class RunningMean:
    """Divides by the running mean of the losses."""

    def __init__(self):
        self.mean = None

    def __call__(self, outputs, targets):
        loss = F.cross_entropy(outputs, targets)
        now = float(loss.detach())
        self.mean = now if self.mean is None else 0.9 * self.mean + 0.1 * now
        return loss / self.mean


class FirstBatch(nn.Module):
    shift = None

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        if self.shift is None:
            self.shift = x.detach().mean(0)
        return self.layer(x - self.shift)


def alone(network, loss_fn):
    """Process each example with a fresh copy of the network and the loss."""
    rows = [Batch(X[i : i + 1], Y[i : i + 1]) for i in range(len(Y))]
    return sum(exact_sum(ClippedUnit(1, 6), network(), loss_fn(), row, clip_of()).flat_grad.float() for row in rows)


def linear():
    return nn.Linear(4, 3)


@pytest.mark.sample(16)
@pytest.mark.parametrize(("network", "loss_fn"), [(linear, RunningMean), (FirstBatch, nn.CrossEntropyLoss)])
@pytest.mark.parametrize("physical", [None, 2])
@pytest.mark.parametrize("name", [pytest.param("auto", marks=pytest.mark.slow), *ENGINES.names()])
def test_no_state_of_an_example_reaches_the_next_one(name, physical, network, loss_fn):
    trained = network()
    fresh = lambda: _copy(network(), trained)  # noqa: E731
    loss = loss_fn()
    try:
        engine = choose_engine(
            name, trained, loss, ClippedUnit(1, 6), Batch(X[:4], Y[:4]), physical_batch_size=physical
        ).engine
    except UnsupportedModuleError:
        assert isinstance(loss, RunningMean)
        assert name in ("bookkeeping", "vmap")
        return
    for _ in range(2):
        found = engine.clipped_sum(trained, loss, Batch(X, Y), clip_of())
        assert close(found.flat_grad, alone(fresh, loss_fn), 1e-5)
    assert getattr(trained, "shift", None) is None
    assert getattr(loss, "mean", None) is None
    assert engine.boundary.put_back


def _copy(network, other):
    network.load_state_dict(other.state_dict())
    return network


class Carrying(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        sys.modules["_".join(("a", "module", "that", "no", "code", "names"))].kept.append(x * 2)
        return self.layer(x)


@pytest.mark.parametrize("name", [pytest.param("auto", marks=pytest.mark.slow), *ENGINES.names()])
@pytest.mark.sample(3)
def test_an_escaped_tensor_is_refused_unless_isolation_is_trusted(name):
    def choose(isolation):
        ELSEWHERE.kept.clear()
        return choose_engine(
            name, Carrying(), nn.CrossEntropyLoss(), ClippedUnit(1, 6), Batch(X[:4], Y[:4]), isolation=isolation
        )

    with pytest.raises(UnsupportedModuleError, match="outlive the pass"):
        choose("verified")
    if name in ("auto", "loop"):
        engine = choose("trust").engine
        assert engine.name == "loop"
        assert "not verified" in engine.explain_isolation()
        engine.clipped_sum(Carrying(), nn.CrossEntropyLoss(), Batch(X, Y), clip_of())
    ELSEWHERE.kept.clear()


class Counted(nn.Module):
    """Weights classes by their frequency so far, counted in place."""

    def __init__(self):
        super().__init__()
        self.reduction, self.state = "mean", {"counts": torch.ones(3)}

    def forward(self, outputs, targets):
        self.state["counts"] += torch.bincount(targets, minlength=3)
        losses = F.cross_entropy(outputs, targets, reduction="none") / self.state["counts"][targets]
        return losses if self.reduction == "none" else losses.mean()


def test_a_tensor_of_the_loss_is_restored_after_each_example():
    network, loss = linear(), Counted()
    engine = choose_engine("auto", network, loss, ClippedUnit(1, 6), Batch(X[:4], Y[:4])).engine
    found = engine.clipped_sum(network, loss, Batch(X, Y), clip_of())
    assert engine.name == "loop"
    assert close(found.flat_grad, alone(lambda: _copy(linear(), network), Counted), 1e-5)
    assert torch.equal(loss.state["counts"], torch.ones(3))


def test_views_of_the_batch_and_writes_into_old_tensors_are_escapes():
    x, kept, old = torch.ones(4, 3), [], torch.zeros(3)
    with Escapes([x]) as escapes:
        kept.append(x[1:])
    assert escapes.count() == 1
    with Escapes([x]) as escapes:
        old.add_(x[0])
    assert escapes.count() == 1
    with Escapes([x]) as escapes:
        constant = torch.arange(3) * 2
        _ = (x * constant).sum()
        del _
    assert escapes.count() == 0
    assert len(constant) == 3


@pytest.mark.slow
def test_too_much_state_is_refused():
    network = nn.Linear(4, 3)
    network.bank = [[number] for number in range(60_000)]
    with pytest.raises(UnsupportedModuleError, match="too much to check after each pass"):
        choose_engine("auto", network, nn.CrossEntropyLoss(), ClippedUnit(1, 6), Batch(X[:4], Y[:4]))
    engine = ENGINES.create("loop", ClippedUnit(1, 6))
    with pytest.raises(UnprotectedUpdateError, match="too much to check after each pass"):
        engine.clipped_sum(network, nn.CrossEntropyLoss(), Batch(X, Y), clip_of())
