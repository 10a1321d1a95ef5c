"""Global modes of torch do not change clipped sums."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.overrides import BaseTorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from mechanisms.clipping import Fixed
from mechanisms.engines import ENGINES, Batch
from mechanisms.engines.modes import plain_modes, require_no_modes
from mechanisms.units import ClippedUnit
from monitors.errors import ConfigError, UnsupportedModuleError


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


MODES = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float16": lambda: default_dtype(torch.float16),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float64": lambda: default_dtype(torch.float64),
    "device": lambda: torch.device("meta"),
    "inference": torch.inference_mode,
    "no gradients": torch.no_grad,
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True),
    "deterministic": deterministic,
}


class Sequence(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.norm = nn.Embedding(11, 8), nn.LayerNorm(8)
        self.attention, self.memory = nn.MultiheadAttention(8, 2, batch_first=True), nn.GRU(8, 6, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, tokens):
        x = self.norm(self.table(tokens))
        return self.head(self.memory(self.attention(x, x, x, need_weights=False)[0])[0][:, -1])


def images():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    return network, torch.randn(12, 1, 6, 6)


def texts():
    return Sequence(), torch.randint(11, (12, 5))


def clipped_sum(engine, network, x, y, unit):
    clip = Fixed()
    clip.start(0.05)
    ids = None if unit.group_size == 1 else torch.arange(4, device="cpu").repeat_interleave(3)
    batch = Batch(x, y, ids, None if ids is None else 4)
    return ENGINES.get(engine)(unit).clipped_sum(network, nn.CrossEntropyLoss(), batch, clip)


@pytest.mark.sample(12)
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
@pytest.mark.parametrize("make", [images, texts])
@pytest.mark.parametrize("engine", ["bookkeeping", "vmap", "loop"])
@pytest.mark.parametrize("unit", [ClippedUnit(1, 12), ClippedUnit(3, 12)], ids=["examples", "groups"])
def test_a_clipped_sum_is_the_same_under_each_mode(mode, make, engine, unit):
    network, x = make()
    y = torch.arange(12) % 3
    if ENGINES.get(engine).refuses(network, nn.CrossEntropyLoss(), unit, Batch(x[:2], y[:2])) is not None:
        return
    expected = clipped_sum(engine, network, x, y, unit)
    with mode():
        found = clipped_sum(engine, network, x, y, unit)
    assert torch.equal(found.flat_grad, expected.flat_grad)
    assert torch.equal(found.norms, expected.norms)
    assert found.loss == expected.loss


def test_modes_are_restored_afterwards():
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        with plain_modes():
            assert not torch.is_autocast_enabled("cpu")
            assert not torch.is_inference_mode_enabled()
        assert torch.is_autocast_enabled("cpu")
        assert torch.is_inference_mode_enabled()
    assert not torch.is_autocast_enabled("cpu")


class Passing(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [BaseTorchFunctionMode, Passing, lambda: FlopCounterMode(display=False)])
def test_modes_that_see_each_operation_are_refused(mode):
    with mode(), pytest.raises(ConfigError, match="is active around fit"):
        require_no_modes(nn.Linear(2, 2))


def test_a_default_device_is_accepted_and_inference_mode_weights_are_not():
    with torch.device("cpu"):
        require_no_modes(nn.Linear(2, 2))
    with torch.inference_mode():
        network = nn.Linear(2, 2)
    with pytest.raises(UnsupportedModuleError, match=r"'weight' was created in torch\.inference_mode"):
        require_no_modes(network)
