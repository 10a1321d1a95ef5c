"""Law: adding one example moves no engine's clipped sum by more than the stated sensitivity, found by search."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mechanisms.clipping import CLIP
from mechanisms.engines import ENGINES, Batch
from mechanisms.units import ClippedUnit


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Tiny tensors gain nothing from threads, and lose much when the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


BOUND, UNITS = 0.7, 3
#: Each rounds its norms and sums in float32.
ROUNDING = 1 + 1e-5


def largest_move(engine_name, clip_name, group_size, dtype):
    """The farthest that one added example moved the sum, over drawn and constructed neighbours."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2, bias=False)).to(dtype)
    unit, clip = ClippedUnit(group_size, UNITS), CLIP.create(clip_name)
    clip.start(BOUND)
    engine, loss_fn = ENGINES.create(engine_name, unit), nn.CrossEntropyLoss()
    farthest = 0.0
    for trial in range(24):
        x = torch.randn(UNITS * group_size + 1, 6, dtype=dtype) * (0.1 if trial % 2 else 10.0)
        y = torch.randint(0, 2, (len(x),))
        if trial % 3 == 0:  # the added one outweighs its group and points the other way
            x[:], y[:] = x[:1], 0
            x[-1], y[-1] = x[0] * 50 if trial % 2 else x[0], 1
            x[:-1] *= 1.0 if trial % 4 else 1e-1
        ids = None if group_size == 1 else torch.cat([torch.arange(UNITS).repeat(group_size), torch.zeros(1)]).long()
        weights = torch.ones(len(x), dtype=dtype)
        weights[-1] = 3.0 * group_size
        both = Batch(x, torch.stack([y.to(dtype), weights], 1), ids, None if ids is None else UNITS)
        with_it = engine.clipped_sum(model, _weighted(loss_fn), both, clip)
        without = engine.clipped_sum(model, _weighted(loss_fn), both.select(slice(0, -1)), clip)
        farthest = max(farthest, float((with_it.flat_grad - without.flat_grad).norm()))
        assert farthest <= with_it.sensitivity * ROUNDING
    return farthest


def _weighted(loss_fn):
    def loss(outputs, targets, reduction="mean"):
        per_example = nn.functional.cross_entropy(outputs, targets[:, 0].long(), reduction="none") * targets[:, 1] * 20
        return per_example if reduction == "none" else per_example.mean()

    del loss_fn
    return loss


@pytest.mark.parametrize("clip_name", CLIP.names())
@pytest.mark.parametrize("engine_name", ENGINES.names())
def test_one_example_moves_the_sum_by_at_most_the_bound_and_the_bound_is_reached(engine_name, clip_name):
    farthest = largest_move(engine_name, clip_name, 1, torch.float32)
    assert 0.85 * BOUND <= farthest <= BOUND * ROUNDING


@pytest.mark.parametrize("group_size", [2, 8])
@pytest.mark.parametrize("engine_name", ENGINES.names())
def test_one_example_of_a_group_moves_the_sum_by_up_to_twice_the_bound(engine_name, group_size):
    farthest = largest_move(engine_name, "Fixed", group_size, torch.float32)
    assert 1.5 * BOUND <= farthest <= 2 * BOUND * ROUNDING
