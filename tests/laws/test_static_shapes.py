"""Law: static shapes change nothing but the order of additions, whatever the fillers of a chunk hold."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from mechanisms.clipping import CLIP
from mechanisms.engines import ENGINES, Batch
from mechanisms.units import ClippedUnit

CAPACITY, UNITS = 4, 3
SIZES = (0, 1, CAPACITY - 1, CAPACITY, CAPACITY + 1, 3 * CAPACITY)
#: What the fillers hold: copies of a row, or something without a finite gradient or norm.
FILLINGS = (None, float("nan"), 1e6, 1e30)


def network(dtype=torch.float32):
    layers = nn.Conv2d(1, 3, 3), nn.ReLU(), nn.GroupNorm(1, 3), nn.Flatten(), nn.Linear(48, 3, bias=False)
    return nn.Sequential(*layers).to(dtype)


def drawn(size, grouped):
    x, y = torch.randn(size, 1, 6, 6), torch.randint(0, 3, (size,))
    return Batch(x, y, torch.randint(0, UNITS, (size,)) if grouped else None, UNITS if grouped else None)


def summed(engine_name, clip_name, batch, *, model, capacity=CAPACITY, filling=None, physical=None):
    """The sum, and the chunks that the engine was given."""
    grouped, clip, seen = batch.group_ids is not None, CLIP.create(clip_name), []
    clip.start(0.3)
    engine = ENGINES.create(engine_name, ClippedUnit(2 if grouped else 1, UNITS), physical)
    engine.capacity, original = capacity, engine.partial_sum

    def partial_sum(network, losses, chunk, *rest):
        if chunk.real is not None and filling is not None:
            of_row = chunk.real if not grouped else chunk.real[chunk.group_ids]
            x = chunk.x.clone()
            x[~of_row] = filling
            chunk = dataclasses.replace(chunk, x=x)
        seen.append(chunk)
        return original(network, losses, chunk, *rest)

    engine.partial_sum = partial_sum
    return engine.clipped_sum(model, nn.CrossEntropyLoss(), batch, clip), seen


def require_equal(found, expected, relative=1e-5):
    assert found.norms.shape == expected.norms.shape
    for left, right in ((found.flat_grad, expected.flat_grad), (found.norms, expected.norms)):
        scale = float(right.nan_to_num().abs().max()) if right.numel() else 0.0
        assert torch.allclose(left, right, rtol=relative, atol=relative * scale, equal_nan=True)
    assert found.loss == pytest.approx(expected.loss, rel=1e-5, nan_ok=True)
    assert (found.rejected, found.sensitivity, found.norm_bound) == (
        expected.rejected,
        expected.sensitivity,
        expected.norm_bound,
    )


@pytest.mark.sample(144)
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("clip_name", CLIP.names())
@pytest.mark.parametrize("engine_name", ENGINES.names())
def test_the_sum_is_that_of_the_drawn_examples(engine_name, clip_name, size, grouped):
    torch.manual_seed(size)
    model, batch = network(), drawn(size, grouped)
    expected, _ = summed(engine_name, clip_name, batch, model=model, capacity=None)
    sums = []
    for filling in FILLINGS:
        found, _ = summed(engine_name, clip_name, batch, model=model, filling=filling)
        require_equal(found, expected)
        sums.append(found.flat_grad)
    assert all(torch.equal(sums[0], one) for one in sums)  # fillers do not change a bit


@pytest.mark.sample(24)
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("physical", [None, 2, 3, 100])
@pytest.mark.parametrize("engine_name", ENGINES.names())
def test_every_chunk_has_the_same_number_of_rows_and_nothing_is_left_out(engine_name, physical, grouped):
    model, rows = network(), min(physical or CAPACITY, CAPACITY)
    for size in SIZES:
        batch = drawn(size, grouped)
        expected, _ = summed(engine_name, "Fixed", batch, model=model, capacity=None)
        found, seen = summed(engine_name, "Fixed", batch, model=model, physical=physical)
        require_equal(found, expected)
        passes = [chunk for chunk in seen if chunk.size]
        assert all(chunk.fillers == int((~chunk.real).sum()) for chunk in passes)
        if not grouped:
            assert [chunk.size for chunk in passes] == [rows] * -(-size // rows)
            continue
        assert len({chunk.num_units for chunk in passes}) <= 1
        for chunk in passes:  # a group is never split
            assert chunk.size == rows or (chunk.size % rows == 0 and int(chunk.real.sum()) == 1)


@pytest.mark.parametrize("broken", [0, 2])
@pytest.mark.parametrize("engine_name", ENGINES.names())
def test_a_unit_without_a_finite_gradient_is_counted_once(engine_name, broken):
    model, batch = network(), drawn(CAPACITY - 1, grouped=False)
    batch.x[broken] = float("nan")  # fillers are copies of row 0
    found, _ = summed(engine_name, "Fixed", batch, model=model, capacity=8)
    keep = torch.tensor([row for row in range(batch.size) if row != broken])
    without, _ = summed(engine_name, "Fixed", batch.select(keep), model=model, capacity=None)
    assert found.rejected == 1
    assert torch.allclose(found.flat_grad, without.flat_grad, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("engine_name", ENGINES.names())
def test_a_full_chunk_gives_the_same_bits(engine_name):
    model, batch = network(), drawn(CAPACITY, grouped=False)
    plain, _ = summed(engine_name, "Fixed", batch, model=model, capacity=None)
    static, _ = summed(engine_name, "Fixed", batch, model=model)
    assert torch.equal(static.flat_grad, plain.flat_grad)
    assert torch.equal(static.norms, plain.norms)


@pytest.mark.parametrize("engine_name", ENGINES.names())
def test_the_random_numbers_of_an_example_do_not_depend_on_the_others(engine_name):
    model, batch = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, 3)), drawn(CAPACITY, grouped=False)
    norms = []
    for part in (batch, batch.select(slice(3)), batch.select(slice(2))):
        torch.manual_seed(1)
        norms.append(summed(engine_name, "Fixed", part, model=model)[0].norms)
    assert torch.allclose(norms[1], norms[0][:3])
    assert torch.allclose(norms[2], norms[0][:2])


@pytest.mark.parametrize("engine_name", ENGINES.names())
def test_rows_of_a_different_shape_start_a_new_shape(engine_name):
    model = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16, 3))
    for side in (6, 9, 6):
        batch = Batch(torch.randn(3, 1, side, side), torch.randint(0, 3, (3,)))
        expected, _ = summed(engine_name, "Fixed", batch, model=model, capacity=None)
        require_equal(summed(engine_name, "Fixed", batch, model=model)[0], expected)


@pytest.mark.parametrize("kind", ["tokens", "pairs", "singular"])
@pytest.mark.parametrize("engine_name", ENGINES.names())
def test_fillers_are_valid_examples(engine_name, kind):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(5, 4, padding_idx=0), nn.Linear(4, 3)

        def forward(self, first, second=None):
            if kind == "tokens":
                return self.head(self.table(first).mean(1))
            if kind == "pairs":
                return self.head(first * second["scale"])
            return self.head(torch.linalg.inv(first).sum(1))  # of zeros, an error

    x = {
        "tokens": torch.randint(1, 5, (3, 2)),
        "pairs": (torch.randn(3, 4), {"scale": torch.randn(3, 1)}),
        "singular": torch.randn(3, 4, 4) + 4 * torch.eye(4),
    }[kind]
    model, batch = Network(), Batch(x, torch.randint(0, 3, (3,)))
    expected, _ = summed(engine_name, "Fixed", batch, model=model, capacity=None)
    require_equal(summed(engine_name, "Fixed", batch, model=model)[0], expected)
