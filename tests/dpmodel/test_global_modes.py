"""A training is the same under global modes of torch, or refused before anything is spent."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from dpmodel import ClipMechanismsFactory, NoiseMechanismsFactory
from monitors.errors import ConfigError


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


MODES = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float16": lambda: default_dtype(torch.float16),
    "float64": lambda: default_dtype(torch.float64),
    "device": lambda: torch.device("meta"),
    "inference": torch.inference_mode,
    "no gradients": torch.no_grad,
}


@pytest.fixture
def train(make_model):
    """Trains the same small network under a mode; returns its weights and its model."""

    def run(mode, **options):
        torch.manual_seed(0)
        x, y = torch.randn(64, 4), torch.arange(64) % 3
        model = make_model(
            nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)),
            noise_mech=NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=0.5, seed=5),
            clip_mech=ClipMechanismsFactory.create("Gaussian", seed=6),
            seed=3,
            **options,
        )
        with mode():
            model.fit(DataLoader(TensorDataset(x, y), 16), epochs=2)
        return torch.cat([value.detach().flatten() for value in model.network.parameters()]), model

    return run


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
@pytest.mark.parametrize("engine", ["auto", "loop"])
@pytest.mark.sample(12)
def test_a_training_is_the_same_under_each_mode(train, mode, engine, capsys):
    expected, _ = train(torch.enable_grad, engine=engine)
    capsys.readouterr()
    found, _ = train(mode, engine=engine)
    assert torch.equal(found, expected)
    assert ("autocast is off during fit" in capsys.readouterr().out) == (mode is MODES["autocast"])


def test_a_mode_that_sees_each_operation_is_refused_before_anything_is_spent(make_model, loader):
    model = make_model()
    with FlopCounterMode(display=False), pytest.raises(ConfigError, match="FlopCounterMode is active around fit"):
        model.fit(loader)
    assert model.ledger.total == 0
