"""Law: every engine agrees with the one-example loop, for every clip mechanism, for examples and for groups."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dpmodel.nets import StandardisedConv2d
from mechanisms.clipping import CLIP
from mechanisms.engines import ENGINES, Batch, LoopEngine
from mechanisms.units import ClippedUnit


def networks():
    return {
        "convolutional": nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.Tanh(), nn.MaxPool2d(2), nn.GroupNorm(1, 3), nn.Flatten(), nn.Linear(27, 3)
        ),
        "standardised": nn.Sequential(
            StandardisedConv2d(1, 3, 3), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 3)
        ),
        "dense": nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.LayerNorm(5), nn.Linear(5, 3)),
    }


def drawn(size, units, grouped):
    x, y = torch.randn(size, 1, 8, 8), torch.randint(0, 3, (size,))
    return Batch(x, y, torch.randint(0, units, (size,)) if grouped else None, units if grouped else None)


@pytest.mark.parametrize("network", networks())
@pytest.mark.parametrize("clip_name", CLIP.names())
@pytest.mark.parametrize("engine_name", ENGINES.names())
@settings(max_examples=6, deadline=None)
@given(
    size=st.integers(0, 6),
    group=st.sampled_from([1, 2, 3]),
    physical=st.sampled_from([None, 1, 2, 4]),
    double=st.booleans(),
)
@pytest.mark.sample(36)
def test_every_engine_agrees_with_the_loop(engine_name, clip_name, network, size, group, physical, double):
    torch.manual_seed(size)
    unit, model = ClippedUnit(group, 4), networks()[network]
    batch, clip = drawn(size, 4, unit.grouped), CLIP.create(clip_name)
    if double:
        model, batch = model.double(), Batch(batch.x.double(), batch.y, batch.group_ids, batch.units)
    clip.start(0.3)
    expected = LoopEngine(unit).clipped_sum(model, nn.CrossEntropyLoss(), batch, clip)
    found = ENGINES.create(engine_name, unit, physical).clipped_sum(model, nn.CrossEntropyLoss(), batch, clip)
    relative = 1e-10 if double else 1e-5
    for left, right in ((found.flat_grad, expected.flat_grad), (found.norms, expected.norms)):
        assert left.shape == right.shape
        scale = float(right.abs().max()) if right.numel() else 0.0
        assert torch.allclose(left, right, rtol=relative, atol=relative * scale)
    assert (found.sensitivity, found.norm_bound) == (expected.sensitivity, expected.norm_bound)
    assert found.loss == pytest.approx(expected.loss, rel=1e-5, nan_ok=True)


@pytest.mark.parametrize("engine_name", ENGINES.names())
@pytest.mark.parametrize("clip_name", CLIP.names())
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_non_finite_unit_contributes_exactly_zero(engine_name, clip_name, poison):
    model, clip = networks()["convolutional"], CLIP.create(clip_name)
    clip.start(1.0)
    batch = drawn(5, 5, grouped=False)
    batch.x[2] = poison
    engine, keep = ENGINES.create(engine_name, ClippedUnit(1, 5)), torch.tensor([0, 1, 3, 4])
    found = engine.clipped_sum(model, nn.CrossEntropyLoss(), batch, clip)
    without = engine.clipped_sum(model, nn.CrossEntropyLoss(), batch.select(keep), clip)
    assert found.rejected == 1
    assert torch.allclose(found.flat_grad, without.flat_grad, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("engine_name", ENGINES.names())
def test_norms_that_overflow_contribute_exactly_zero(engine_name):
    model, clip = nn.Linear(4, 3), CLIP.create("Fixed")
    clip.start(1.0)
    x = torch.randn(4, 4)
    x[1] = 1e30
    found = ENGINES.create(engine_name, ClippedUnit(1, 4)).clipped_sum(
        model, nn.CrossEntropyLoss(), Batch(x, torch.zeros(4, dtype=torch.long)), clip
    )
    assert torch.isfinite(found.flat_grad).all()
    assert float(found.flat_grad.norm()) <= 4.0
