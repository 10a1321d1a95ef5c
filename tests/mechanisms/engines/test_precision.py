"""Half-precision passes: the bound on the influence of an example is the same; norms, factors and sums stay in float32.

A lower precision adds one way to break the bound that float32 hides: if the rounding of the OTHER examples' gradients
depended on who else is in the batch, all of them would move when one is added. Therefore neighbours are compared as
whole batches, with and without chunks.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mechanisms.clipping import CLIP
from mechanisms.engines import ENGINES, Batch, BookKeepingEngine, LoopEngine, choose_engine
from mechanisms.engines.bookkeeping import terms
from mechanisms.engines.bookkeeping.recorder import Recorder
from mechanisms.engines.precision import full_float32
from mechanisms.engines.verification import disagreement
from mechanisms.units import ClippedUnit
from monitors.errors import ConfigError

BOUND = 0.7
CLIPS = ("Fixed", "Gaussian", "PerLayer")
#: Sums of at most 34 vectors of norm ``BOUND`` in float32.
ROUNDING = 1 + 1e-5
#: Each rounding to bf16's 8 significant bits is within 2**-9; a few layers deep, and with an occasional pooling window
#: in which a different entry has become the largest, that grows to several hundredths.
BF16 = 0.15


def image_network():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3),
        nn.GroupNorm(2, 6),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(24, 3),
    )


class TokenNetwork(nn.Module):
    """A table, an encoder layer and a mean over the sequence."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(11, 8)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens):
        return self.head(self.encoder(self.tokens(tokens)).mean(1))


def images(count, scale=1.0):
    return torch.randn(count, 1, 10, 10) * scale


def tokens(count, scale=1.0):
    del scale
    return torch.randint(0, 11, (count, 6))


NETWORKS = {"images": (image_network, images), "tokens": (TokenNetwork, tokens)}


class WeightedLoss(nn.Module):
    """Cross entropy times a weight per example, so that one can dominate; targets (B, 2): class and weight."""

    reduction = "mean"

    def forward(self, outputs, targets):
        return nn.functional.cross_entropy(outputs, targets[:, 0].long(), reduction="none") * targets[:, 1]


def clipped_sum(network, x, y, clip_name, group_size=1, device="cpu", precision="bf16", **options):
    clip = CLIP.create(clip_name)
    clip.start(BOUND)
    units = max(len(y) // group_size, 1)
    ids = None if group_size == 1 else torch.arange(len(y), device=device) % units
    engine = BookKeepingEngine(ClippedUnit(group_size, units), precision=precision, **options)
    return engine.clipped_sum(network, WeightedLoss(), Batch(x, y, ids, None if ids is None else units), clip)


def targets(count, weight=20.0):
    return torch.stack([torch.randint(0, 3, (count,)).float(), torch.full((count,), weight)], 1)


def farthest_move(kind, clip_name, device="cpu", **options):
    """The largest move of the sum by one added example, relative to the stated sensitivity, over random neighbours."""
    torch.manual_seed(3)
    make, draw = NETWORKS[kind]
    network, farthest = make().to(device), 0.0
    for trial, size in enumerate((1, 2, 3, 7, 8, 15, 16, 17, 33)):
        x, y = draw(size + 1, scale=0.1 if trial % 3 == 0 else 5.0), targets(size + 1)
        if trial % 2:  # the added one points away from the others and dominates them
            x[:-1], y[:-1, 0], y[-1, 0], y[-1, 1] = x[:1].clone(), 0.0, 1.0, 500.0
        x, y = x.to(device), y.to(device)
        with_it = clipped_sum(network, x, y, clip_name, device=device, **options)
        without = clipped_sum(network, x[:-1], y[:-1], clip_name, device=device, **options)
        assert with_it.sensitivity == without.sensitivity == BOUND
        farthest = max(farthest, float((with_it.flat_grad - without.flat_grad).norm()) / with_it.sensitivity)
    return farthest


@pytest.mark.parametrize("clip_name", CLIPS)
@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.sample(6)
def test_one_example_moves_the_sum_by_at_most_the_bound_and_the_bound_is_attained(kind, clip_name):
    assert 0.85 <= farthest_move(kind, clip_name) <= ROUNDING


@pytest.mark.sample(2)
@pytest.mark.parametrize("kind", NETWORKS)
def test_shifted_chunk_boundaries_do_not_change_the_other_examples(kind):
    assert farthest_move(kind, "Fixed", physical_batch_size=4) <= ROUNDING


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_one_example_moves_the_sum_by_at_most_the_bound_on_a_gpu(precision):
    for kind in NETWORKS:
        for clip_name in CLIPS:
            farthest = farthest_move(kind, clip_name, device="cuda", precision=precision)
            # There, the rounding of the other examples may depend on the size of the batch.
            assert 0.85 <= farthest <= 1 + 1e-3, (kind, clip_name)


@pytest.mark.parametrize("kind", NETWORKS)
def test_passes_are_in_half_precision_while_norms_and_sums_are_float32(kind, monkeypatch):
    make, draw = NETWORKS[kind]
    network, seen, watched = make(), [], Recorder._watched

    def noted(self, record, output):
        seen.append(output.dtype)
        return watched(self, record, output)

    monkeypatch.setattr(Recorder, "_watched", noted)
    found = clipped_sum(network, draw(6), targets(6), "PerLayer")
    assert torch.bfloat16 in seen
    assert found.flat_grad.dtype == found.norms.dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())


@pytest.mark.parametrize("group_size", [1, 2])
@pytest.mark.parametrize("clip_name", CLIPS)
@pytest.mark.parametrize("kind", NETWORKS)
def test_the_result_equals_the_one_example_loops_up_to_half_precision_rounding(kind, clip_name, group_size):
    torch.manual_seed(4)
    make, draw = NETWORKS[kind]
    network, x, y = make(), draw(8), targets(8, weight=1.0)
    clip = CLIP.create(clip_name)
    clip.start(BOUND)
    unit = ClippedUnit(group_size, 8 // group_size)
    ids = None if group_size == 1 else torch.arange(8) % unit.expected_units
    exact = LoopEngine(unit).clipped_sum(
        network, WeightedLoss(), Batch(x, y, ids, None if ids is None else unit.expected_units), clip
    )
    found = clipped_sum(network, x, y, clip_name, group_size)
    assert 0 < float((found.flat_grad - exact.flat_grad).norm()) <= BF16 * float(exact.flat_grad.norm())
    assert torch.allclose(found.norms, exact.norms, rtol=BF16, atol=0.02 * float(exact.norms.max()))


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("clip_name", CLIPS)
def test_a_non_finite_example_contributes_exactly_zero(clip_name, poison):
    torch.manual_seed(5)
    network, x, y = image_network(), images(6), targets(6)
    x[2] = poison
    keep = [0, 1, 3, 4, 5]
    found, without = (clipped_sum(network, *pair, clip_name) for pair in ((x, y), (x[keep], y[keep])))
    assert (found.rejected, without.rejected) == (1, 0)
    assert torch.allclose(found.flat_grad, without.flat_grad, rtol=1e-5, atol=1e-6)


def test_a_gradient_that_overflows_in_half_precision_is_left_out():
    """bf16 has the range of float32: an example whose gradient overflows both is rejected, never clipped to NaN."""
    torch.manual_seed(6)
    network, x, y = image_network(), images(5), targets(5)
    y[1, 1] = 1e38
    found = clipped_sum(network, x, y, "Fixed")
    assert found.rejected == 1
    assert torch.isfinite(found.flat_grad).all()
    assert float(found.flat_grad.norm()) <= 4 * BOUND * ROUNDING


@pytest.mark.parametrize("coarse", ["high", "medium"])
def test_reduced_precision_products_are_refused_by_every_engine_before_any_release(coarse, clip):
    network = nn.Linear(4, 3)
    batch = Batch(torch.randn(6, 4), torch.arange(6) % 3)
    torch.set_float32_matmul_precision(coarse)
    try:
        with pytest.raises(ConfigError, match=f"{coarse}.*set_float32_matmul_precision"):
            choose_engine("auto", network, nn.CrossEntropyLoss(), ClippedUnit(1, 6), batch)
        for name in ENGINES.names():
            with pytest.raises(ConfigError, match=coarse):
                ENGINES.create(name, ClippedUnit(1, 6)).clipped_sum(network, nn.CrossEntropyLoss(), batch, clip)
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.skipif(not hasattr(torch.backends.mkldnn, "conv"), reason="this torch has no such setting")
@pytest.mark.parametrize("coarse", ["bf16", "tf32"])
def test_reduced_precision_cpu_convolutions_are_refused_too(coarse, clip):
    settings = torch.backends.mkldnn.conv
    batch, before = Batch(images(6), torch.arange(6) % 3), settings.fp32_precision
    settings.fp32_precision = coarse
    try:
        with pytest.raises(ConfigError, match=f"{coarse}.*mkldnn.conv.fp32_precision = 'ieee'"):
            BookKeepingEngine(ClippedUnit(1, 6)).clipped_sum(image_network(), nn.CrossEntropyLoss(), batch, clip)
        settings.fp32_precision = "ieee"
        BookKeepingEngine(ClippedUnit(1, 6)).clipped_sum(image_network(), nn.CrossEntropyLoss(), batch, clip)
    finally:
        settings.fp32_precision = before


def of_convolutions():
    return getattr(getattr(torch.backends.mkldnn, "conv", None), "fp32_precision", "none")


class Setting(nn.Linear):
    """Sets the precision of products and convolutions for itself, and for what comes after it."""

    def forward(self, x):
        torch.set_float32_matmul_precision("medium")
        if hasattr(torch.backends.mkldnn, "conv"):
            torch.backends.mkldnn.conv.fp32_precision = "bf16"
        return super().forward(x)


@pytest.fixture
def precisions(monkeypatch):
    """The precision of products in the forward pass, in the terms of layers, and in the sum."""
    seen, place = {"forward": [], "terms": [], "sum": []}, "mechanisms.engines.bookkeeping"

    def noted(name, function):
        def noting(*args, **kwargs):
            coarse = of_convolutions() not in ("none", "ieee")
            seen[name].append("coarse" if coarse else torch.get_float32_matmul_precision())
            return function(*args, **kwargs)

        return noting

    monkeypatch.setattr(Recorder, "_watched", noted("forward", Recorder._watched))
    monkeypatch.setattr(f"{place}.terms._direct", noted("terms", terms._direct))
    monkeypatch.setattr(BookKeepingEngine, "_add", noted("sum", BookKeepingEngine._add))
    return seen


@pytest.mark.parametrize("group_size", [1, 2])
@pytest.mark.parametrize(("precision", "name"), [("fp32", "highest"), ("tf32", "high"), ("bf16", "highest")])
def test_only_passes_have_products_of_lower_precision(precision, name, group_size, precisions):
    clipped_sum(image_network(), images(6), targets(6), "Fixed", group_size, precision=precision)
    assert precisions["forward"][-1] == name  # a survey comes first
    assert set(precisions["terms"] + precisions["sum"]) == {"highest"}
    assert bool(precisions["terms"]) == (group_size == 1)
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_a_precision_set_by_the_network_does_not_reach_norms_and_sums(precision, precisions):
    network = nn.Sequential(nn.Flatten(), Setting(100, 5), nn.Tanh(), nn.Linear(5, 3))
    clipped_sum(network, images(6), targets(6), "Fixed", precision=precision)
    assert {"medium", "coarse"} & set(precisions["forward"])
    assert set(precisions["terms"] + precisions["sum"]) == {"highest"}
    assert torch.get_float32_matmul_precision() == "highest"
    assert of_convolutions() in ("none", "ieee")


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="this torch has no such setting")
def test_a_pass_in_full_precision_leaves_the_settings_of_torch_as_they_are(monkeypatch):
    called = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", called.append)
    clipped_sum(image_network(), images(6), targets(6), "Fixed", precision="fp32")
    assert not called


def test_products_have_full_precision_after_a_pass_that_fails():
    network = nn.Sequential(nn.Flatten(), Setting(100, 5), nn.Unflatten(1, (2, 2)))
    with pytest.raises(RuntimeError, match="unflatten"):
        clipped_sum(network, images(6), targets(6), "Fixed", precision="tf32")
    assert torch.get_float32_matmul_precision() == "highest"


def cudnn_settings():
    kinds = (getattr(torch.backends.cudnn, kind, None) for kind in ("conv", "rnn"))
    return [getattr(kind, "fp32_precision", torch._C._get_cudnn_allow_tf32) for kind in kinds]


@pytest.mark.parametrize("allowed", [True, False])
def test_full_float32_applies_to_gpu_convolutions_and_is_undone_afterwards(allowed, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
    before = cudnn_settings()
    with full_float32():
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 is allowed
    assert cudnn_settings() == before


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="this torch has no such setting")
def test_separate_settings_per_kind_of_layer_are_restored_too():
    kinds, before = (torch.backends.cudnn.conv, torch.backends.cudnn.rnn), cudnn_settings()
    try:
        kinds[0].fp32_precision, kinds[1].fp32_precision = "ieee", "tf32"
        with full_float32():
            assert cudnn_settings() == ["ieee", "ieee"]
        assert cudnn_settings() == ["ieee", "tf32"]
    finally:
        for kind, value in zip(kinds, before, strict=True):
            kind.fp32_precision = value


def test_engines_are_compared_with_the_loop_in_full_float32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    seen, forward = [], nn.Conv2d.forward

    def noted(self, x):
        seen.append(torch.backends.cudnn.allow_tf32)
        return forward(self, x)

    monkeypatch.setattr(nn.Conv2d, "forward", noted)
    monkeypatch.setattr(
        "mechanisms.engines.isolation.guards.replaced_function", lambda: None
    )  # which would refuse the patch
    assert (
        disagreement(BookKeepingEngine, image_network(), nn.CrossEntropyLoss(), Batch(images(2), torch.arange(2)))
        is None
    )
    assert seen
    assert not any(seen)


@pytest.mark.parametrize("variable", ["ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE"])
def test_reduced_precision_products_set_in_the_environment_are_refused_too(monkeypatch, variable, clip):
    batch = Batch(images(6), torch.arange(6) % 3)
    monkeypatch.setenv(variable, "STRICT")
    BookKeepingEngine(ClippedUnit(1, 6)).clipped_sum(image_network(), nn.CrossEntropyLoss(), batch, clip)
    monkeypatch.setenv(variable, "BF16")
    with pytest.raises(ConfigError, match=f"{variable}=BF16"):
        BookKeepingEngine(ClippedUnit(1, 6)).clipped_sum(image_network(), nn.CrossEntropyLoss(), batch, clip)
