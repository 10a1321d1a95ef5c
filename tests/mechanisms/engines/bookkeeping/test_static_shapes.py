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


@pytest.mark.parametrize("broken", [0, 5, 8])
def test_on_a_gpu_a_row_that_is_not_finite_is_masked_without_another_pass(broken, clip, monkeypatch):
    monkeypatch.setattr(module, "costs_a_wait", lambda value: True)
    network, (x, y), engine = cnn(), images(8), BookKeepingEngine(ClippedUnit(1, 8))
    engine.capacity, original, sizes = 12, engine.partial_sum, []

    def partial_sum(network, losses, chunk, *rest):
        sizes.append(chunk.size)
        chunk.x[broken] = torch.nan  # row 8 is a filler
        return original(network, losses, chunk, *rest)

    engine.partial_sum = partial_sum
    rows = torch.tensor([row for row in range(8) if row != broken])
    without = LoopEngine(ClippedUnit(1, 8)).clipped_sum(network, nn.CrossEntropyLoss(), Batch(x, y).select(rows), clip)
    for passes in ([12], [12, 12]):
        found = engine.clipped_sum(network, nn.CrossEntropyLoss(), Batch(x.clone(), y), clip)
        assert sizes == passes
        assert found.rejected == (broken < 8)
        assert torch.allclose(found.flat_grad, without.flat_grad, rtol=1e-4, atol=1e-5)
