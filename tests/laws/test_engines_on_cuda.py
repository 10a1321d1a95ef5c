"""Laws of the engines on a GPU: they agree with the one-example loop, and no example exceeds the bound.

Float64 shows that the formulas are right. Float32 is what trains: its convolutions are TF32 by torch's default, which
may move a gradient, but must never let an example move the sum by more than was stated.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mechanisms.clipping import CLIP
from mechanisms.engines import ENGINES, Batch, LoopEngine
from mechanisms.units import ClippedUnit

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DEVICE, BOUND, CLASSES = "cuda", 0.7, 5
#: Convolutions round their factors to 11 bits, and the error grows with the layers.
TF32 = 2e-2
#: The rounding of the other examples may depend on the batch size, by far less than the bound.
ROUNDING = 1 + 1e-3


def image_network():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.Tanh(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, groups=2),
        nn.GroupNorm(4, 32),
        nn.Tanh(),
        nn.Conv2d(32, 16, 1, bias=False),
        nn.Flatten(),
        nn.Linear(256, CLASSES),
    )


def dense_network():
    return nn.Sequential(nn.Linear(24, 64), nn.Tanh(), nn.LayerNorm(64), nn.Linear(64, CLASSES))


class TokenNetwork(nn.Module):
    """A table, an encoder layer and a mean over the sequence."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(50, 32)
        self.encoder = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, tokens):
        return self.head(self.encoder(self.tokens(tokens)).mean(1))


NETWORKS = {
    "images": (image_network, lambda count: torch.randn(count, 3, 16, 16)),
    "vectors": (dense_network, lambda count: torch.randn(count, 24)),
    "tokens": (TokenNetwork, lambda count: torch.randint(0, 50, (count, 20))),
}


def moved(batch, device, dtype):
    x = batch.x.to(device, dtype) if batch.x.is_floating_point() else batch.x.to(device)
    ids = None if batch.group_ids is None else batch.group_ids.to(device)
    return Batch(x, batch.y.to(device), ids, batch.units)


def drawn(kind, size, group=1):
    make, inputs = NETWORKS[kind]
    units = max(size // group, 1)
    ids = None if group == 1 else torch.arange(size) % units
    batch = Batch(inputs(size), torch.randint(0, CLASSES, (size,)), ids, None if group == 1 else units)
    return make(), batch, ClippedUnit(group, units)


def clipped_sum(engine, network, batch, clip_name, scale=1.0):
    clip = CLIP.create(clip_name)
    clip.start(BOUND)
    return engine.clipped_sum(network, Scaled(scale), batch, clip)


class Scaled(nn.Module):
    """Cross entropy times a number, so that examples reach the bound or stay below it."""

    def __init__(self, scale):
        super().__init__()
        self.scale, self.reduction = scale, "mean"

    def forward(self, outputs, targets):
        return nn.functional.cross_entropy(outputs, targets, reduction=self.reduction) * self.scale


def error(found, expected):
    return float((found.double().cpu() - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def exact(network, batch, unit, clip_name, scale):
    wide = copy.deepcopy(network).double().cpu()
    return clipped_sum(LoopEngine(unit), wide, moved(batch, "cpu", torch.float64), clip_name, scale)


#: Clip mechanism, network, group size, type and largest error: each formula exactly, then in the training type.
NUMBERS = [
    *(("Fixed", kind, group, torch.float64, 1e-9) for kind in NETWORKS for group in (1, 2)),
    *((name, "images", 1, torch.float64, 1e-9) for name in CLIP.names() if name != "Fixed"),
    *(("Fixed", kind, 1, torch.float32, TF32) for kind in NETWORKS),
]


@pytest.mark.parametrize("engine_name", ENGINES.names())
def test_every_engine_agrees_with_the_loop(engine_name):
    for case in NUMBERS:
        clip_name, kind, group, dtype, most = case
        network, batch, unit = drawn(kind, 6, group)
        network = network.to(DEVICE, dtype)
        for scale, physical, capacity in ((0.05, None, None), (10.0, 4, None), (10.0, None, 9)):
            expected = exact(network, batch, unit, clip_name, scale)
            engine = ENGINES.create(engine_name, unit, physical)
            engine.capacity = capacity
            found = clipped_sum(engine, network, moved(batch, DEVICE, dtype), clip_name, scale)
            assert found.flat_grad.device.type == DEVICE
            assert error(found.flat_grad, expected.flat_grad) <= most, (case, scale, physical)
            assert error(found.norms, expected.norms) <= most, (case, scale, physical)
            assert found.loss == pytest.approx(expected.loss, rel=most), (case, scale, physical)


@pytest.mark.parametrize("options", [{}, {"precision": "bf16"}], ids=str)
def test_no_example_moves_the_sum_of_book_keeping_by_more_than_the_bound(options):
    for clip_name, kind in (*(("Fixed", kind) for kind in NETWORKS), *((name, "images") for name in CLIP.names())):
        farthest_move("bookkeeping", clip_name, kind, options)


@pytest.mark.parametrize("engine_name", [name for name in ENGINES.names() if name != "bookkeeping"])
def test_no_example_moves_the_sum_of_the_other_engines_by_more_than_the_bound(engine_name):
    for kind in NETWORKS:
        farthest_move(engine_name, "Fixed", kind, {}, among=(0, 8))


def farthest_move(engine_name, clip_name, kind, options, among=(0, 1, 8, 31)):
    """Asserts the bound for an example added to batches of several sizes, and for one alone."""
    network, farthest, case = NETWORKS[kind][0]().to(DEVICE), 0.0, (engine_name, clip_name, kind)
    for others in among:
        _, batch, unit = drawn(kind, others + 1)
        batch = moved(batch, DEVICE, torch.float32)
        engine = ENGINES.create(engine_name, unit, **options)
        with_it = clipped_sum(engine, network, batch, clip_name, 20.0).flat_grad
        without = clipped_sum(engine, network, batch.select(slice(0, others)), clip_name, 20.0).flat_grad
        move = float((with_it.double() - without.double()).norm()) / BOUND
        assert move <= (1 + 1e-5 if others == 0 else ROUNDING), f"{case}, {others} others: {move:.6f} of the bound"
        farthest = max(farthest, move)
    assert farthest >= 0.85, case


@pytest.mark.parametrize("engine_name", ENGINES.names())
def test_a_non_finite_example_contributes_exactly_zero(engine_name):
    for kind, poison in (("images", float("nan")), ("images", float("inf")), ("vectors", float("nan"))):
        network, batch, unit = drawn(kind, 6)
        batch.x[2] = poison
        network, batch = network.to(DEVICE), moved(batch, DEVICE, torch.float32)
        engine = ENGINES.create(engine_name, unit)
        rest = batch.select(torch.tensor([0, 1, 3, 4, 5], device=DEVICE))
        expected = clipped_sum(ENGINES.create(engine_name, unit), network, rest, "Fixed")
        for _ in range(2):  # non-finite values are expected the second time
            found = clipped_sum(engine, network, batch, "Fixed")
            assert (found.rejected, expected.rejected) == (1, 0), (kind, poison)
            most = TF32 * float(expected.flat_grad.abs().max())
            assert torch.allclose(found.flat_grad, expected.flat_grad, rtol=TF32, atol=most), (kind, poison)


def test_an_empty_batch_gives_zeros_on_the_device():
    network, batch, unit = drawn("images", 4)
    empty = moved(batch.select(slice(0, 0)), DEVICE, torch.float32)
    for engine_name in ENGINES.names():
        found = clipped_sum(ENGINES.create(engine_name, unit), network.to(DEVICE), empty, "Fixed")
        assert found.flat_grad.device.type == DEVICE
        assert not found.flat_grad.any()


def replayed(engine, network, batches, clip_name, scale):
    """The sums of several batches with one loss and one vector, as in training: later passes are replays."""
    clip, loss_fn, total, found = CLIP.create(clip_name), Scaled(scale), None, []
    clip.start(BOUND)
    for batch in batches:
        summed = engine.clipped_sum(network, loss_fn, batch, clip, total)
        total = summed.flat_grad if total is None else total
        found.append((summed.flat_grad.clone(), summed.norms, summed.loss))
    return found


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-9), (torch.float32, TF32)], ids=str)
@pytest.mark.parametrize("clip_name", CLIP.names())
@pytest.mark.parametrize("kind", NETWORKS)
def test_replayed_passes_agree_with_the_loop(kind, clip_name, dtype, most):
    network, _, unit = drawn(kind, 6)
    network = network.to(DEVICE, dtype)
    sizes = (6, 3, 6, 7, 14, 1)  # some take several chunks, some have fillers
    batches = [moved(drawn(kind, size)[1], DEVICE, dtype) for size in sizes]
    engine = ENGINES.create("bookkeeping", unit)
    engine.capacity = 7
    found = replayed(engine, network, batches, clip_name, 1.0)
    assert engine.graphs.recorded == 1, engine.graphs.refusal
    for (grad, norms, loss), batch in zip(found, batches, strict=True):
        expected = exact(network, batch, unit, clip_name, 1.0)
        assert error(grad, expected.flat_grad) <= most
        assert error(norms, expected.norms) <= most
        assert loss == pytest.approx(expected.loss, rel=most)


@pytest.mark.parametrize("options", [{}, {"precision": "bf16"}], ids=str)
@pytest.mark.parametrize("kind", NETWORKS)
def test_no_example_moves_a_replayed_sum_by_more_than_the_bound(kind, options):
    network = NETWORKS[kind][0]().to(DEVICE)
    _, batch, unit = drawn(kind, 32)
    batch = moved(batch, DEVICE, torch.float32)
    engine = ENGINES.create("bookkeeping", unit, **options)
    engine.capacity = 33
    batches = [batch, batch, batch, *(batch.select(slice(0, others)) for others in (31, 8, 9, 1))]
    sums = [grad.double() for grad, *_ in replayed(engine, network, batches, "Fixed", 20.0)]
    assert engine.graphs.recorded == 1, engine.graphs.refusal
    moves = [float((sums[2] - sums[3]).norm()), float((sums[5] - sums[4]).norm()), float(sums[6].norm())]
    assert max(moves) >= 0.85 * BOUND
    assert max(moves) <= ROUNDING * BOUND


def test_a_broken_example_has_no_part_in_a_replayed_sum():
    network, batch, unit = drawn("images", 6)
    network, batch = network.to(DEVICE), moved(batch, DEVICE, torch.float32)
    broken = moved(drawn("images", 6)[1], DEVICE, torch.float32)
    expected = broken.select(slice(1, 6))
    broken.x[0] = float("nan")  # fillers are copies of the first row
    engine = ENGINES.create("bookkeeping", unit)
    engine.capacity = 8
    found = replayed(engine, network, [batch] * 4 + [broken] * 5, "Fixed", 1.0)
    assert engine.graphs.recorded == 2, engine.graphs.refusal
    rest = exact(network, expected, unit, "Fixed", 1.0)
    for grad, norms, _ in found[4:]:
        assert error(grad, rest.flat_grad) <= TF32
        assert not norms[0].isfinite()
