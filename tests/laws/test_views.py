"""Law: the views of an example count as one example, with the mean of their gradients, in every engine."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mechanisms.clipping import CLIP
from mechanisms.engines import ENGINES, Batch
from mechanisms.engines.views import Views
from mechanisms.units import ClippedUnit

BOUND, UNITS, CLASSES = 0.3, 3, 3
ROUNDING = 1 + 1e-5


def networks():
    return {
        "convolutional": nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=(1, 2), padding=1, groups=2), nn.Tanh(), nn.MaxPool2d(2), nn.GroupNorm(2, 4),
            nn.Conv2d(4, 3, (2, 1), dilation=2, padding="same"), nn.Flatten(), nn.Linear(24, CLASSES),
        ),
        "of signals": nn.Sequential(
            nn.Flatten(2), nn.Conv1d(2, 3, 5, stride=3, padding=2, padding_mode="circular"), nn.ReLU(),
            nn.Conv1d(3, 2, 3, padding=1, bias=False), nn.Flatten(), nn.LayerNorm(44), nn.Linear(44, CLASSES),
        ),
        "of volumes": nn.Sequential(
            nn.Unflatten(1, (1, 2)), nn.Conv3d(1, 2, 2, stride=2), nn.Tanh(), nn.Flatten(1, 2),
            nn.ConvTranspose2d(2, 2, 3, padding=1), nn.Conv2d(2, 3, 1), nn.Flatten(), nn.Linear(48, CLASSES),
        ),
        "dense": nn.Sequential(nn.Flatten(), nn.Linear(128, 5), nn.ReLU(), nn.LayerNorm(5), nn.Linear(5, CLASSES)),
    }  # fmt: skip


def ungrouped_loss(outputs, targets):
    """A loss without a reduction, which is called on one row at a time."""
    return nn.functional.cross_entropy(outputs, targets).square()


LOSSES = {"mean": nn.CrossEntropyLoss(), "sum": nn.CrossEntropyLoss(reduction="sum"), "own": ungrouped_loss}


def view(copies, numbers):
    """Scaled and shifted copies."""
    return copies * (0.5 + numbers[:, :1, None, None]) + 3.0 * numbers[:, 1:, None, None]


def drawn(size, multiplicity, *, grouped=False):
    x, y = torch.randn(size, 2, 8, 8), torch.randint(0, CLASSES, (size,))
    ids = torch.randint(0, UNITS, (size,)) if grouped else None
    views = Views(torch.rand(size, multiplicity, 2), view)
    return Batch(x, y, ids, UNITS if grouped else None, views=views)


def by_hand(model, loss, batch, group, bound=BOUND):
    """The clipped sum by one backward pass per view of each example."""
    parameters, multiplicity = list(model.parameters()), batch.views.multiplicity
    units = torch.zeros(batch.num_units, sum(value.numel() for value in parameters))
    for row in range(batch.size):
        unit = row if batch.group_ids is None else int(batch.group_ids[row])
        for number in range(multiplicity):
            one = view(batch.x[row : row + 1], batch.views.numbers[row, number : number + 1])
            gradients = torch.autograd.grad(loss(model(one), batch.y[row : row + 1]), parameters)
            units[unit] += torch.cat([part.flatten() for part in gradients]) / multiplicity / group
    return (units * (bound / units.norm(dim=1, keepdim=True).clamp(min=bound))).sum(0)


def summed(engine_name, model, loss, batch, *, clip_name="Fixed", group=1, physical=None, capacity=None):
    clip = CLIP.create(clip_name)
    clip.start(BOUND)
    engine = ENGINES.create(engine_name, ClippedUnit(group, UNITS), physical)
    engine.capacity = capacity
    return engine.clipped_sum(model, loss, batch, clip)


def require_close(found, expected, relative=2e-5):
    assert torch.allclose(found, expected, rtol=relative, atol=relative * float(expected.abs().max()))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("network", networks())
@pytest.mark.parametrize("engine_name", ENGINES.names())
@settings(max_examples=5, deadline=None)
@given(
    size=st.integers(1, 5),
    multiplicity=st.integers(1, 4),
    group=st.sampled_from([1, 1, 2]),
    physical=st.sampled_from([None, 1, 2]),
    capacity=st.sampled_from([None, 3]),
)
@pytest.mark.sample(36)
def test_the_sum_is_that_of_the_mean_gradients_of_the_views(
    engine_name, network, loss, size, multiplicity, group, physical, capacity
):
    torch.manual_seed(size)
    model, batch = networks()[network], drawn(size, multiplicity, grouped=group > 1)
    found = summed(engine_name, model, LOSSES[loss], batch, group=group, physical=physical, capacity=capacity)
    require_close(found.flat_grad, by_hand(model, LOSSES[loss], batch, group))
    assert found.sensitivity == (BOUND if group == 1 else 2 * BOUND)
    assert len(found.norms) == batch.num_units


@pytest.mark.parametrize("clip_name", CLIP.names())
@pytest.mark.parametrize("engine_name", ENGINES.names())
def test_every_clip_mechanism_clips_the_mean_once(engine_name, clip_name):
    model, batch = networks()["convolutional"], drawn(5, 3)
    found = summed(engine_name, model, LOSSES["mean"], batch, clip_name=clip_name)
    expected = summed("loop", model, LOSSES["mean"], batch, clip_name=clip_name)
    for left, right in ((found.flat_grad, expected.flat_grad), (found.norms, expected.norms)):
        require_close(left, right)
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)


@pytest.mark.parametrize("multiplicity", [1, 2, 5])
@pytest.mark.parametrize("network", networks())
@pytest.mark.parametrize("engine_name", ENGINES.names())
def test_identical_views_equal_the_view(engine_name, network, multiplicity):
    model, batch = networks()[network], drawn(4, multiplicity)
    numbers = batch.views.numbers[:, :1].expand_as(batch.views.numbers)
    alike = replace(batch, views=Views(numbers, view))
    plain = Batch(view(batch.x, numbers[:, 0]), batch.y)
    found, expected = (summed(engine_name, model, LOSSES["mean"], one) for one in (alike, plain))
    require_close(found.flat_grad, expected.flat_grad)
    require_close(found.norms, expected.norms)


@pytest.mark.parametrize("engine_name", ENGINES.names())
def test_one_view_is_a_training_on_that_view_bit_for_bit(engine_name):
    model, batch = networks()["dense"].double(), drawn(4, 1)
    batch = replace(batch, x=batch.x.double(), views=Views(batch.views.numbers.double(), view))
    plain = Batch(view(batch.x, batch.views.numbers[:, 0]), batch.y)
    found, expected = (summed(engine_name, model, LOSSES["mean"], one) for one in (batch, plain))
    assert torch.equal(found.flat_grad, expected.flat_grad)


def weighted(outputs, targets, reduction="mean"):
    """Cross entropy times a weight that comes with the label."""
    losses = nn.functional.cross_entropy(outputs, targets[:, 0].long(), reduction="none") * targets[:, 1]
    return losses if reduction == "none" else losses.mean()


def batches(multiplicity, *, grouped):
    """Batches whose last example changes: its gradient is like those of the others, or opposed to them and larger."""
    for size in (0.3, 3.0):
        for opposed in (False, True):
            torch.manual_seed(int(size))
            batch = drawn(7, multiplicity, grouped=grouped)
            x, y = batch.x[:1].repeat(7, 1, 1, 1) * size, torch.tensor([[0.0, 20.0]]).repeat(7, 1)
            if opposed:
                y[-1] = torch.tensor([1.0, 1e5])
            ids = torch.zeros(7, dtype=torch.int64) if grouped else None
            yield replace(batch, x=x, y=y, group_ids=ids)


@pytest.mark.parametrize("multiplicity", [1, 2, 8])
@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("engine_name", ENGINES.names())
@pytest.mark.parametrize(("physical", "capacity"), [(None, None), (2, None), (None, 4)])
@pytest.mark.sample(54)
def test_an_example_with_all_its_views_moves_the_sum_by_at_most_the_bound_and_reaches_it(
    engine_name, group, multiplicity, physical, capacity
):
    model, moves = networks()["dense"], []
    for batch in batches(multiplicity, grouped=group > 1):
        pair = [
            summed(engine_name, model, weighted, part, group=group, physical=physical, capacity=capacity)
            for part in (batch, batch.select(slice(0, -1)))
        ]
        moves.append(float((pair[0].flat_grad - pair[1].flat_grad).norm()))
        assert pair[0].sensitivity == (BOUND if group == 1 else 2 * BOUND)
        assert moves[-1] <= pair[0].sensitivity * ROUNDING
    assert max(moves) >= (0.95 if group == 1 else 1.5) * BOUND


@pytest.mark.parametrize("engine_name", ENGINES.names())
def test_a_view_without_a_finite_gradient_leaves_out_the_whole_example(engine_name):
    model, batch = networks()["dense"], drawn(4, 3)
    batch.views.numbers[1, 2] = float("nan")
    found = summed(engine_name, model, LOSSES["mean"], batch)
    assert found.rejected == 1
    others = summed(engine_name, model, LOSSES["mean"], batch.select(torch.tensor([0, 2, 3])))
    require_close(found.flat_grad, others.flat_grad)


@pytest.mark.parametrize("engine_name", ENGINES.names())
def test_an_empty_batch_and_empty_groups_give_zero(engine_name):
    model = networks()["dense"]
    for grouped in (False, True):
        found = summed(engine_name, model, LOSSES["mean"], drawn(0, 3, grouped=grouped), group=1 + grouped)
        assert not found.flat_grad.any()
