"""Static shapes in the fast engine: chunks made for speed, and the path of a GPU, on which the host does not wait."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mechanisms.engines import Batch, BookKeepingEngine, LoopEngine
from mechanisms.engines.bookkeeping import engine as module
from mechanisms.units import ClippedUnit


def images(size):
    return torch.randn(size, 1, 12, 12), torch.randint(0, 3, (size,))


def cnn():
    layers = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(100, 3)
    return nn.Sequential(*layers)


def with_chunks_seen(engine):
    seen, original = [], engine.partial_sum
    engine.partial_sum = lambda *args: seen.append(args[2].size) or original(*args)
    return seen


def test_with_static_shapes_chunks_made_for_speed_also_have_one_size(clip, monkeypatch):
    monkeypatch.setattr(module, "_cache_friendly_chunk", lambda survey: 5)
    network, engine = cnn(), BookKeepingEngine(ClippedUnit(1, 8))
    engine.capacity = 12
    seen = with_chunks_seen(engine)
    for size in (1, 6, 8, 12, 13, 30):
        x, y = images(size)
        found = engine.clipped_sum(network, nn.CrossEntropyLoss(), Batch(x, y), clip)
        expected = LoopEngine(ClippedUnit(1, 8)).clipped_sum(network, nn.CrossEntropyLoss(), Batch(x, y), clip)
        assert torch.allclose(found.flat_grad, expected.flat_grad, rtol=1e-4, atol=1e-5)
        assert found.norms.shape == (size, 1)
    assert set(seen) == {4} == {engine.static_rows}
    assert "chunks of 4 examples" in engine.explain()


@pytest.mark.parametrize("broken", [0, 5])
def test_on_a_gpu_static_shapes_never_wait_and_never_repeat_a_pass(broken, clip, monkeypatch):
    monkeypatch.setattr(module, "costs_a_wait", lambda value: True)
    network, (x, y), engine = cnn(), images(8), BookKeepingEngine(ClippedUnit(1, 8))
    engine.capacity, seen = 12, with_chunks_seen(engine)
    x[broken] = torch.nan  # with row 0, the fillers are not finite either
    found = engine.clipped_sum(network, nn.CrossEntropyLoss(), Batch(x, y), clip)
    rows = torch.tensor([row for row in range(8) if row != broken])
    without = LoopEngine(ClippedUnit(1, 8)).clipped_sum(network, nn.CrossEntropyLoss(), Batch(x, y).select(rows), clip)
    assert seen == [12]
    assert found.rejected == 1
    assert torch.allclose(found.flat_grad, without.flat_grad, rtol=1e-4, atol=1e-5)
