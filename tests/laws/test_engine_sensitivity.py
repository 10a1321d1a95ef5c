"""Law: no neighbour moves an engine's clipped sum by more than the stated sensitivity; neighbours are searched for."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn

from mechanisms.clipping import CLIP
from mechanisms.engines import ENGINES, Batch
from mechanisms.units import ClippedUnit

BOUND, UNITS = 0.7, 3
#: Norms and sums are rounded in the parameters' type.
ROUNDING = 1 + 1e-5
#: Sizes of the other inputs, and the kind of the changing example: random, like the others, or opposed to them.
SIZES, KINDS = (0.1, 1.0, 10.0), ("drawn", "alike", "opposed")


def weighted(outputs, targets, reduction="mean"):
    """Cross entropy times a weight given with the label; weight 0 zeroes out the example's gradient."""
    losses = nn.functional.cross_entropy(outputs, targets[:, 0].long(), reduction="none") * targets[:, 1]
    return losses if reduction == "none" else losses.mean()


def batches(group_size, dtype):
    """Batches whose last example is the one that changes."""
    generator = torch.Generator().manual_seed(1)
    others = UNITS * group_size
    ids = None if group_size == 1 else torch.cat([torch.arange(UNITS).repeat(group_size), torch.zeros(1)]).long()
    for size, kind, _ in product(SIZES, KINDS, range(3)):
        x = torch.randn(others + 1, 6, dtype=dtype, generator=generator) * size
        y = torch.randint(0, 2, (others + 1,), generator=generator)
        if kind != "drawn":  # all others have gradients in one direction, longer than the bound
            x[:], y[:] = x[:1], 0
        if kind == "opposed":
            x[-1], y[-1] = x[0] * 50, 1
        weights = torch.full((others + 1,), 20.0, dtype=dtype)
        weights[-1] = 60.0 * group_size
        units = None if ids is None else UNITS
        yield Batch(x, torch.stack([y.to(dtype), weights], 1), ids, units)


def without(batch, relation):
    """The neighbour: the last example is missing, or its gradient is zero."""
    if relation == "add or remove":
        return batch.select(slice(0, -1))
    y = batch.y.clone()
    y[-1, 1] = 0.0
    return Batch(batch.x, y, batch.group_ids, batch.units)


def farthest_move(engine_name, clip_name, group_size, *, relation, dtype=torch.float32, physical=None, capacity=None):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2, bias=False)).to(dtype)
    clip = CLIP.create(clip_name)
    clip.start(BOUND)
    engine = ENGINES.create(engine_name, ClippedUnit(group_size, UNITS), physical)
    engine.capacity = capacity
    moves = [0.0]
    for batch in batches(group_size, dtype):
        pair = [engine.clipped_sum(model, weighted, part, clip) for part in (batch, without(batch, relation))]
        moves.append(float((pair[0].flat_grad - pair[1].flat_grad).norm()))
        assert moves[-1] <= pair[0].sensitivity * ROUNDING
    return max(moves)


@pytest.mark.sample(48)
@pytest.mark.parametrize("relation", ["add or remove", "zero out"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("clip_name", CLIP.names())
@pytest.mark.parametrize("engine_name", ENGINES.names())
def test_one_example_moves_the_sum_by_at_most_the_bound_and_the_bound_is_reached(
    engine_name, clip_name, dtype, relation
):
    farthest = farthest_move(engine_name, clip_name, 1, relation=relation, dtype=dtype)
    assert 0.85 * BOUND <= farthest <= BOUND * ROUNDING


@pytest.mark.sample(48)
@pytest.mark.parametrize("relation", ["add or remove", "zero out"])
@pytest.mark.parametrize("group_size", [2, 8])
@pytest.mark.parametrize("clip_name", CLIP.names())
@pytest.mark.parametrize("engine_name", ENGINES.names())
def test_one_example_of_a_group_moves_the_sum_by_at_most_twice_the_bound(engine_name, clip_name, group_size, relation):
    farthest = farthest_move(engine_name, clip_name, group_size, relation=relation)
    assert 1.5 * BOUND <= farthest <= 2 * BOUND * ROUNDING


@pytest.mark.parametrize("group_size", [1, 4])
@pytest.mark.parametrize("physical", [1, 2, 5])
@pytest.mark.parametrize("engine_name", ENGINES.names())
@pytest.mark.sample(18)
def test_the_sensitivity_also_holds_for_chunked_batches(engine_name, physical, group_size):
    farthest = farthest_move(engine_name, "Fixed", group_size, relation="add or remove", physical=physical)
    assert farthest <= (1 if group_size == 1 else 2) * BOUND * ROUNDING


@pytest.mark.parametrize("group_size", [1, 4])
@pytest.mark.parametrize(("capacity", "physical"), [(3, None), (8, None), (40, None), (40, 2)])
@pytest.mark.parametrize("clip_name", CLIP.names())
@pytest.mark.parametrize("engine_name", ENGINES.names())
@pytest.mark.sample(96)
def test_the_sensitivity_also_holds_for_static_shapes(engine_name, clip_name, capacity, physical, group_size):
    shapes = {"capacity": capacity, "physical": physical}
    farthest = farthest_move(engine_name, clip_name, group_size, relation="add or remove", **shapes)
    assert farthest <= (1 if group_size == 1 else 2) * BOUND * ROUNDING
    assert farthest >= (0.85 if group_size == 1 else 1.5) * BOUND


@pytest.mark.parametrize("name", ["bookkeeping", "vmap"])
def test_the_rounding_of_other_examples_stays_below_its_stated_size(name):
    # One example more moves the running sum across a power of two, beyond which all later ones are rounded up.
    count, clip = 4096, CLIP.create("Fixed")
    clip.start(1.0)
    y = torch.ones(count + 1)
    y[1 + count // 2 :] = -0.51 * (count // 2) * 2**-24
    x = torch.zeros(count + 1, 1, 2, 2)
    x[:, 0, 0, 0] = 1.0
    network = nn.Sequential(nn.Conv2d(1, 1, 2, bias=False), nn.Flatten(0))
    found = [
        ENGINES.create(name, ClippedUnit(1, count))
        .clipped_sum(network, lambda outputs, targets: (outputs * targets).sum(), Batch(x[part:], y[part:]), clip)
        .flat_grad
        for part in (0, 1)
    ]
    assert (found[0] - found[1]).norm() <= 1 + count**2 / 2**26 + 1e-3
