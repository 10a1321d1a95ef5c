from __future__ import annotations

import copy
import weakref
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mechanisms.engines import Batch, BookKeepingEngine, LoopEngine
from mechanisms.engines.bookkeeping import engine as module
from mechanisms.engines.bookkeeping.layers.rules import LAYER_RULES, layer_rule
from mechanisms.engines.host_copy import HostCopy
from mechanisms.units import ClippedUnit
from monitors.errors import UnsupportedModuleError


def images(size=6):
    return torch.randn(size, 1, 12, 12), torch.randint(0, 3, (size,))


def cnn(inplace=False):
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(inplace),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3),
        nn.GroupNorm(2, 6),
        nn.ReLU(inplace),
        nn.MaxPool2d(2, 1),
        nn.Flatten(),
        nn.Linear(24, 3),
    )


def clipped_sum(network, x, y, clip, loss_fn=None, **options):
    engine = BookKeepingEngine(ClippedUnit(1, len(y)), **options)
    return engine.clipped_sum(network, loss_fn or nn.CrossEntropyLoss(), Batch(x, y), clip)


def refusal(network, x, y, loss_fn=None):
    return BookKeepingEngine.refuses(network, loss_fn or nn.CrossEntropyLoss(), ClippedUnit(1, len(y)), Batch(x, y))


@pytest.mark.parametrize("inplace", [False, True])
def test_in_place_activations_do_not_change_recorded_inputs(assert_exact, inplace):
    assert_exact(cnn(inplace), *images())


def test_a_group_of_examples_is_clipped_as_one_unit(assert_exact):
    x, y = images(9)
    assert_exact(cnn(), x, y, group_ids=torch.tensor([0, 3, 1, 1, 0, 3, 3, 1, 0]), units=5)


@pytest.mark.parametrize("size", [1, 2, 5, 6])
def test_physical_chunks_do_not_change_the_sum(clip, size):
    network, (x, y) = cnn(), images()
    whole, cut = clipped_sum(network, x, y, clip), clipped_sum(network, x, y, clip, physical_batch_size=size)
    assert torch.allclose(whole.flat_grad, cut.flat_grad, rtol=1e-5, atol=1e-7)
    assert torch.allclose(whole.norms, cut.norms, rtol=1e-5)


def test_chunks_made_for_speed_do_not_change_the_sum(clip, monkeypatch):
    network, (x, y) = cnn(), images(40)
    whole = clipped_sum(network, x, y, clip)
    monkeypatch.setattr(module, "_cache_friendly_chunk", lambda survey: 16)
    assert torch.allclose(whole.flat_grad, clipped_sum(network, x, y, clip).flat_grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("size", "chunks"), [(32, 1), (40, 1), (41, 2), (66, 2), (80, 3), (128, 4)])
def test_a_small_remainder_of_a_batch_is_spread_over_the_chunks_made_for_speed(clip, monkeypatch, size, chunks):
    monkeypatch.setattr(module, "CACHE_BYTES", 1)
    monkeypatch.setattr(module, "MODERATE_BYTES", 1)  # chunks of the smallest size, 32
    network, (x, y), seen = cnn(), images(size), []
    record = module.record_forward
    monkeypatch.setattr(module, "record_forward", lambda *args: seen.append(args[2].size) or record(*args))
    clipped_sum(network, x, y, clip)
    assert len(seen) == chunks
    assert max(seen) - min(seen) < len(seen)
    seen.clear()
    clipped_sum(network, x, y, clip, physical_batch_size=16)
    assert max(seen) <= 16


@pytest.mark.parametrize(
    ("entries", "weights", "rows"),
    [(100, 0, 65_536), (10_000, 50_000, 256), (200_000, 500_000, 64), (200_000, 10**7, 128), (2_000_000, 500_000, 32)],
)
def test_chunks_made_for_speed_fit_the_caches_but_have_enough_rows_for_cores_and_weights(entries, weights, rows):
    site = SimpleNamespace(values=[torch.empty(weights, 1, 1, device="meta"), torch.empty(7)])
    survey = SimpleNamespace(vectors_only=False, sites=[site], entries_per_example=entries)
    assert module._cache_friendly_chunk(survey) == rows


def test_two_runs_give_the_same_bits(clip):
    network, (x, y) = cnn(), images()
    assert torch.equal(clipped_sum(network, x, y, clip).flat_grad, clipped_sum(network, x, y, clip).flat_grad)


def test_timed_formulas_give_the_same_numbers_and_report_the_timings(assert_exact, clip):
    x, y = images()
    network = nn.Sequential(nn.Conv2d(1, 16, 3), nn.Tanh(), nn.Conv2d(16, 16, 9), nn.Flatten(), nn.Linear(64, 3))
    assert_exact(network, x, y, timed_plans=True)
    engine = BookKeepingEngine(ClippedUnit(1, 6), timed_plans=True)
    engine.clipped_sum(network, nn.CrossEntropyLoss(), Batch(x, y), clip)
    assert " ms" in engine.explain()


def test_a_layer_called_twice_contributes_the_sum_of_its_calls(assert_exact):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.mix = nn.Conv2d(1, 1, 3, padding=1), nn.GroupNorm(1, 1), nn.Linear(12, 12)
            self.head = nn.Linear(12, 3)

        def forward(self, x):
            for _ in range(2):
                x = torch.tanh(self.mix(self.norm(self.conv(x))))
            return self.head(x.mean((1, 2)))

    assert_exact(Twice(), *images(), relative=2e-5)


def test_tied_parameters_count_once_with_the_sum_of_their_uses(assert_exact):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=True)
            self.head.weight = self.table.weight

        def forward(self, tokens):
            return self.head(torch.tanh(self.table(tokens)).mean(1))

    assert_exact(Tied(), torch.randint(0, 7, (5, 4)), torch.randint(0, 7, (5,)))


def test_frozen_parameters_are_left_out_and_unused_ones_are_zero(assert_exact, clip):
    network = cnn()
    network[0].weight.requires_grad_(False)
    network[3].bias.requires_grad_(False)
    network.add_module("unused", nn.Identity())
    network.unused.extra = nn.Linear(2, 2)
    x, y = images()
    assert_exact(network, x, y)
    found = clipped_sum(network, x, y, clip).flat_grad
    assert len(found) == sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert not found[-6:].any()
    assert [p.requires_grad for p in network.parameters()][:2] == [False, True]


def test_time_first_sequences_are_recognised(assert_exact):
    class TimeFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.lift, self.norm, self.head = nn.Linear(12, 5), nn.LayerNorm(5), nn.Linear(5, 3)

        def forward(self, x):
            return self.head(torch.tanh(self.norm(self.lift(x.squeeze(1).transpose(0, 1)))).mean(0))

    class TimeFirstLinear(TimeFirst):
        def forward(self, x):
            return self.head(torch.tanh(self.lift(x.squeeze(1).transpose(0, 1))).mean(0))

    assert_exact(TimeFirstLinear(), *images(12))  # as many examples as time steps, so that shapes alone are ambiguous
    assert_exact(TimeFirst(), *images())


def test_examples_folded_into_rows_are_added_up(assert_exact):
    class Frames(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv1d(1, 4, 3), nn.Linear(4, 3)

        def forward(self, x):
            frames = torch.tanh(self.conv(x.flatten(0, 2).unsqueeze(1)).mean(2))
            return self.head(frames).unflatten(0, (len(x), 12)).mean(1)

    assert_exact(Frames(), *images())


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e38])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("ahead", [False, True])
def test_a_non_finite_example_contributes_exactly_zero(clip, poison, grouped, ahead, monkeypatch):
    monkeypatch.setattr(module, "costs_a_wait", lambda value: ahead)
    network, (x, y) = cnn(), images(8)
    x[3], unit = poison, ClippedUnit(2, 4) if grouped else ClippedUnit(1, 8)
    ids = torch.arange(8) // 2 if grouped else None
    found = BookKeepingEngine(unit).clipped_sum(network, nn.CrossEntropyLoss(), Batch(x, y, ids, 4), clip)
    keep = [i for i in range(8) if i // 2 != 1] if grouped else [i for i in range(8) if i != 3]
    ids = ids[keep] if grouped else None
    without = BookKeepingEngine(unit).clipped_sum(network, nn.CrossEntropyLoss(), Batch(x[keep], y[keep], ids, 4), clip)
    if poison == 1e38 and found.rejected == 0:
        assert torch.isfinite(found.flat_grad).all()
        return
    assert found.rejected == 1
    assert torch.allclose(found.flat_grad, without.flat_grad, rtol=1e-5, atol=1e-7)


def test_dropout_draws_one_mask_per_example_and_keeps_the_sensitivity(clip):
    network = nn.Sequential(nn.Linear(4, 32), nn.Dropout(0.5), nn.Tanh(), nn.Linear(32, 3))
    x, y = torch.randn(1, 4).expand(64, 4), torch.zeros(64, dtype=torch.long)
    assert refusal(network, x[:2], y[:2]) is None
    norms = clipped_sum(network, x, y, clip).norms
    assert len(norms.unique()) > 8
    assert network.training


@pytest.mark.parametrize("where", ["forward", "loss"])
def test_the_network_is_restored_even_after_an_exception(clip, where):
    class Broken(nn.Module):
        def forward(self, x):
            if where == "forward":
                raise ArithmeticError("broken")
            return x

    network = cnn()
    network[0].weight.requires_grad_(False)
    network[8].weight.grad = torch.ones_like(network[8].weight)
    network[4].eval()
    network.append(Broken())

    def loss_fn(outputs, targets, reduction="mean"):
        raise ArithmeticError("broken")

    before = copy.deepcopy(network.state_dict())
    flags = [(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in network.parameters()]
    modes = [m.training for m in network.modules()]
    with pytest.raises(ArithmeticError):
        clipped_sum(network, *images(), clip, loss_fn=loss_fn if where == "loss" else None)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in before.items())
    for parameter, (wanted, grad) in zip(network.parameters(), flags, strict=True):
        assert parameter.requires_grad == wanted
        assert (parameter.grad is None) == (grad is None)
    assert modes == [m.training for m in network.modules()]
    assert not any("forward" in vars(module) for module in network.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_choosing_an_engine_preserves_buffers_random_state_and_modes():
    network = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5))
    network.register_buffer("count", torch.zeros(1))
    network.register_forward_hook(lambda module, args, output: module.count.add_(1) and None)
    state = torch.get_rng_state()
    assert refusal(network, torch.randn(2, 4, generator=torch.Generator()), torch.tensor([0, 1])) is None
    assert torch.equal(state, torch.get_rng_state())
    assert network.count == 0
    assert network.training


def test_batch_norm_is_refused_by_name():
    reason = refusal(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(400, 3)), *images())
    assert "'1' (BatchNorm2d) mixes the examples" in reason
    assert "GroupNorm" in reason


def test_batch_norm_is_also_refused_beside_random_layers():
    network = nn.Sequential(nn.Flatten(), nn.Linear(144, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 3))
    assert "BatchNorm1d" in refusal(network, *images())
    assert all(module.training for module in network.modules())


def test_a_network_that_mixes_examples_sees_one_at_a_time(clip):
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.lift = nn.Linear(4, 3)

        def forward(self, x):
            h = self.lift(x)
            return h - h.mean(0)

    network, x = Centred(), torch.randn(4, 4)
    assert refusal(network, x, torch.tensor([0, 1, 2, 0])) is None  # fit refuses it: there, its outputs are compared
    batch = Batch(x, torch.tensor([0, 1, 2, 0]))
    assert not BookKeepingEngine(ClippedUnit(1, 4)).clipped_sum(network, nn.CrossEntropyLoss(), batch, clip).norms.any()


def test_parameters_used_outside_their_layer_are_refused_by_name_at_every_step(clip):
    class Stray(nn.Module):
        def __init__(self):
            super().__init__()
            self.lift, self.stray = nn.Linear(3, 3), False

        def forward(self, x):
            h = self.lift(x)
            return F.linear(h, self.lift.weight) if self.stray else h

    network, x, y = Stray(), torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    assert refusal(network, x, y) is None
    network.stray = True
    assert "'lift.weight' is used outside" in refusal(network, x, y)
    with pytest.raises(UnsupportedModuleError, match=r"lift\.weight"):
        clipped_sum(network, x, y, clip)


def test_inputs_changed_in_place_after_use_are_refused(clip):
    class Overwriting(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            h = self.first(x)
            out = self.second(h)
            h.mul_(2.0)
            return out + h[:, :3]

    with pytest.raises(UnsupportedModuleError, match="'second' is changed in place"):
        clipped_sum(Overwriting(), torch.randn(4, 4), torch.tensor([0, 1, 2, 0]), clip)


def test_layers_free_their_inputs_as_soon_as_their_terms_are_known(clip):
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

        def forward(self, x):
            return x * self.weight

    given, alive = [], []

    def scale(call):
        given.append(weakref.ref(call.inputs[0]))
        alive.append(sum(tensor() is not None for tensor in given))
        return {"weight": call.inputs[0] * call.output_grad}

    layer_rule(Scale)(scale)
    try:
        network = nn.Sequential(*[part for _ in range(4) for part in (Scale(), nn.Tanh())])
        clipped_sum(network, torch.randn(5, 4), torch.randn(5, 4), clip, nn.MSELoss())
    finally:
        del LAYER_RULES[Scale]
    assert alive == [1, 1, 1, 1]


def test_a_layer_whose_gradient_flows_only_to_a_users_tensor_is_exact(assert_exact):
    class Offset(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)
            self.offset = torch.randn(4).requires_grad_()

        def forward(self, x):
            return self.second(torch.tanh(self.first(x)).detach() * self.offset)

    x = torch.randn(5, 4).requires_grad_()
    network = Offset()
    assert_exact(network, x, torch.randint(0, 3, (5,)))
    assert x.grad is None
    assert network.offset.grad is None


@pytest.mark.parametrize(
    ("layer", "word"),
    [
        (nn.Embedding(5, 3, max_norm=1.0), "max_norm"),
        (nn.Embedding(5, 3, scale_grad_by_freq=True), "scale_grad_by_freq"),
        (nn.Sequential(nn.Embedding(5, 3), nn.InstanceNorm1d(2, affine=True, track_running_stats=True)), "statistics"),
    ],
)
def test_options_that_leak_or_connect_examples_are_refused(layer, word):
    network = nn.Sequential(layer, nn.Flatten(), nn.Linear(6, 3))
    assert word in refusal(network, torch.randint(0, 5, (4, 2)), torch.tensor([0, 1, 2, 0]))


@pytest.mark.parametrize("group", [1, 2])
def test_half_precision_passes_keep_the_bound_on_every_unit(clip, group):
    network, (x, y) = cnn(), images(8)
    ids = None if group == 1 else torch.arange(8) // 2
    for unit in range(8 // group):
        rows = slice(unit * group, (unit + 1) * group)
        part = Batch(x[rows], y[rows], None if ids is None else torch.zeros(group, dtype=torch.long), 1)
        engine = BookKeepingEngine(ClippedUnit(group, 8 // group), precision="bf16")
        found = engine.clipped_sum(network, nn.CrossEntropyLoss(), part, clip)
        assert found.flat_grad.dtype == found.norms.dtype == torch.float32
        assert float(found.flat_grad.norm()) <= clip.norm_bound
        exact = LoopEngine(ClippedUnit(group, 8 // group)).clipped_sum(network, nn.CrossEntropyLoss(), part, clip)
        assert torch.allclose(found.norms, exact.norms, rtol=0.1)


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="fp32, tf32, bf16, got 'fp8'"):
        BookKeepingEngine(ClippedUnit(1, 4), precision="fp8")


@pytest.mark.parametrize("size", [None, 3])
def test_on_a_gpu_no_value_is_read_for_a_sum_and_none_is_computed_again(size, clip, monkeypatch):
    monkeypatch.setattr(module, "costs_a_wait", lambda value: True)
    network, (x, y), passes, reads = cnn(), images(8), [], []
    engine, original, read = BookKeepingEngine(ClippedUnit(1, 8), size), BookKeepingEngine.partial_sum, HostCopy.read
    monkeypatch.setattr(
        BookKeepingEngine, "partial_sum", lambda self, *args: passes.append(args[2].size) or original(self, *args)
    )
    monkeypatch.setattr(HostCopy, "read", lambda self: reads.append(self) or read(self))
    whole = LoopEngine(ClippedUnit(1, 8))
    for broken in (False, True, True):
        if broken:
            x[5] = torch.nan
        rows = torch.tensor([row for row in range(8) if row != 5 or not broken])
        expected = whole.clipped_sum(network, nn.CrossEntropyLoss(), Batch(x, y).select(rows), clip)
        del passes[:], reads[:]
        found = engine.clipped_sum(network, nn.CrossEntropyLoss(), Batch(x, y), clip)
        assert (sum(passes), reads) == (8, [])
        assert torch.allclose(found.flat_grad, expected.flat_grad, rtol=1e-5, atol=1e-7)
        assert found.rejected == broken
        assert len(reads) == len(passes)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_gives_the_numbers_of_the_cpu(clip):
    network, (x, y) = cnn().double(), images()
    expected = clipped_sum(network, x.double(), y, clip).flat_grad
    found = clipped_sum(network.cuda(), x.double().cuda(), y.cuda(), clip).flat_grad
    assert torch.allclose(found.cpu(), expected, rtol=1e-8, atol=1e-10)


def test_a_layer_that_is_replaced_between_two_batches_is_trained(clip):
    network, x, y = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(6, 4), torch.arange(6) % 3
    engine, batch = BookKeepingEngine(ClippedUnit(1, 6)), Batch(x, y)
    for _ in range(2):
        found = engine.clipped_sum(network, nn.CrossEntropyLoss(), batch, clip).flat_grad
        expected = LoopEngine(ClippedUnit(1, 6)).clipped_sum(network, nn.CrossEntropyLoss(), batch, clip).flat_grad
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
        network[0] = nn.Linear(4, 5)


@pytest.mark.parametrize("offset", [1e4, 1e6, 1e7, 1e8])
@pytest.mark.parametrize("layer", ["linear", "convolution"])
def test_an_example_whose_terms_cancel_respects_the_bound(layer, offset, clip):
    class Difference(nn.Module):
        def __init__(self, width=48):
            super().__init__()
            linear = nn.Linear(width, width, bias=False)
            self.layer = linear if layer == "linear" else nn.Conv1d(width, width, 1, bias=False)
            self.head = nn.Linear(width, 3)

        def forward(self, x):
            out = self.layer(x) if layer == "linear" else self.layer(x.transpose(1, 2)).transpose(1, 2)
            return self.head(out[:, 0] - out[:, 1])

    for _ in range(4):
        x, y = torch.randn(48, 2, 48), 10 * torch.randn(48, 3)
        x[0] += offset
        network, engine = Difference(), BookKeepingEngine(ClippedUnit(1, 48))
        whole = engine.clipped_sum(network, nn.MSELoss(), Batch(x, y), clip).flat_grad.double()
        without = engine.clipped_sum(network, nn.MSELoss(), Batch(x[1:], y[1:]), clip).flat_grad.double()
        assert "gram" in engine.explain().lower()
        assert (whole - without).norm() <= clip.norm_bound * 1.0001


def test_chunks_are_named_unless_all_batches_fit_into_one(clip):
    for size, named in ((4, True), (8, False), (10**8, False)):
        engine = BookKeepingEngine(ClippedUnit(1, 8), size)
        assert f"in chunks of about {size} examples" in engine.explain()
        engine.clipped_sum(nn.Linear(4, 3), nn.CrossEntropyLoss(), Batch(torch.randn(8, 4), torch.arange(8) % 3), clip)
        assert ("in chunks of about" in engine.explain()) == named
