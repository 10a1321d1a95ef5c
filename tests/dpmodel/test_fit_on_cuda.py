"""Whole trainings on a GPU: the processor's weights, ledger and resumption."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dpmodel import Callback, ClipMechanismsFactory, DPModel, NoiseMechanismsFactory, StateKeeper
from dpmodel.callbacks import Silence
from dpmodel.config import load_config
from dpmodel.data.in_memory import InMemoryDataset
from dpmodel.data.loader import PrivateLoader
from dpmodel.runs.build import build_training

from .power_cut import PowerCut

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DEVICE, SIZE = "cuda", 48
CONFIG = Path(__file__).parents[2] / "configs" / "lenet5_mnist_gaussian.yaml"


def network_of(dtype=torch.float32, dropout=0.0):
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.Tanh(),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(288, 16),
        nn.Tanh(),
        nn.Linear(16, 3),
    ).to(dtype)


def data_of(dtype=torch.float32):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(SIZE, 1, 8, 8, generator=generator, dtype=dtype)
    return TensorDataset(x, torch.randint(0, 3, (SIZE,), generator=generator))


def model_of(network, *, device=DEVICE, noisy=True, seed=3, **options):
    noise = NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=0.8, seed=seed) if noisy else None
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5, momentum=0.9)
    options.setdefault("seed", seed or None)
    return DPModel(network, nn.CrossEntropyLoss(), optimizer, noise_mech=noise, device=device, **options)


def weights(network):
    return torch.cat([value.detach().flatten() for value in network.parameters()]).cpu()


@pytest.mark.parametrize(
    ("engine", "physical"), [("auto", None), ("auto", 7), ("auto", "auto"), ("vmap", 7), ("loop", None)]
)
def test_without_noise_the_weights_match_those_of_the_cpu(engine, physical):
    found = []
    for device in ("cpu", DEVICE):
        network = network_of(torch.float64)
        model = model_of(
            network, device=device, noisy=False, engine=engine, physical_batch_size=physical, sampling="shuffle"
        )
        model.fit(DataLoader(data_of(torch.float64), batch_size=SIZE), epochs=3, callbacks=Silence())
        found.append(weights(network))
    assert not torch.allclose(found[0], weights(network_of(torch.float64)), atol=1e-3)
    assert torch.allclose(found[0], found[1], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("sampling", "micro_batches", "resident"),
    [("poisson", None, False), ("poisson", 4, True), ("shuffle", None, True), ("shuffle", 4, False)],
)
def test_the_ledger_matches_that_of_the_cpu(sampling, micro_batches, resident):
    ledgers = []
    for device in ("cpu", DEVICE):
        network = network_of()
        clip = ClipMechanismsFactory.create(
            "Gaussian", decay_policy="Geometric", learning_rate=0.3, fraction_stddev=0.2
        )
        model = model_of(network, device=device, seed=0, sampling=sampling, micro_batches=micro_batches, clip_mech=clip)
        data = InMemoryDataset(*data_of().tensors).to(device if resident else "cpu")
        history = model.fit(PrivateLoader(data, 12, sampling=sampling), 2, callbacks=Silence())
        assert len(history) == 2
        assert torch.isfinite(weights(network)).all()
        assert all(value.device.type == device for value in network.parameters())
        ledgers.append(model.ledger)
    assert ledgers[0].rows == ledgers[1].rows


@pytest.mark.parametrize(("sampling", "stop"), [("poisson", 3), ("poisson", 9), ("shuffle", 4)])
def test_a_resumed_training_is_the_uninterrupted_one(stop, sampling, tmp_path):
    def fit(*callbacks, keeper=None):
        model = model_of(network_of(dropout=0.3), sampling=sampling)
        loader = PrivateLoader(data_of(), 12, sampling=sampling)
        model.fit(loader, 3, callbacks=[Silence(), *callbacks], keeper=keeper)
        return model

    torch.manual_seed(0)
    whole = fit()
    torch.manual_seed(0)
    with pytest.raises(KeyboardInterrupt):
        fit(PowerCut(stop), keeper=StateKeeper(tmp_path, 4))
    torch.manual_seed(99)
    resumed = fit(keeper=StateKeeper(tmp_path, 4, resume=True))
    assert torch.allclose(weights(whole.network), weights(resumed.network), rtol=1e-5, atol=1e-6)
    assert whole.ledger.kept == resumed.ledger.kept
    assert resumed.steps_done == whole.steps_done


@pytest.mark.parametrize("sampling", ["poisson", "shuffle"])
def test_a_data_set_of_tensors_on_the_device_is_read_there(sampling):
    found = []
    for device in ("cpu", DEVICE):
        network = network_of(torch.float64)
        data = TensorDataset(*(tensor.to(device) for tensor in data_of(torch.float64).tensors))
        model = model_of(network, noisy=False, sampling=sampling)
        model.fit(DataLoader(data, batch_size=12), 2, callbacks=Silence())
        found.append(weights(network))
    assert torch.allclose(found[0], found[1], rtol=1e-7, atol=1e-9)


def test_evaluation_and_prediction_take_data_from_the_cpu():
    model = model_of(network_of(), seed=0)
    model.fit(DataLoader(data_of(), batch_size=12), callbacks=Silence())
    x, y = data_of().tensors
    assert model.eval((x, y))["loss"] > 0
    assert model.predict(x).shape == (SIZE, 3)


def test_a_configuration_trains_on_the_device_automatically():
    config = load_config(CONFIG, ["data.limit=256", "training.batch_size=64", "training.epochs=1"])
    training = build_training(config)
    assert training.task.device.type == DEVICE
    assert training.model.device.type == DEVICE


class Unwaiting(Callback):
    """Makes every synchronisation that torch detects an error, from step 8 to step 40."""

    def on_train_step_end(self, run):
        torch.cuda.set_sync_debug_mode("error" if 8 <= run.step < 40 else "default")

    def on_train_end(self, run):
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("clip", ["Fixed", "PerLayer"])
def test_the_host_does_not_wait_between_two_steps(clip):
    x, y = data_of().tensors
    data = InMemoryDataset((255 * x.sigmoid()).to(torch.uint8), y, mean=0.5, std=0.25).to(DEVICE)
    model = model_of(network_of(), seed=0, clip_mech=ClipMechanismsFactory.create(clip))
    model.fit(PrivateLoader(data, 12), 12, callbacks=[Silence(), Unwaiting()])
    assert model.steps_done == 48
    assert "replayed as CUDA graphs" in model.explain_engine()
