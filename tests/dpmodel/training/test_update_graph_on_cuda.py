"""Updates on a GPU: replays give the weights of the updates, with noise that is fresh and has its scale."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

from dpmodel import DPModel, NoiseMechanismsFactory
from dpmodel.callbacks import Silence
from dpmodel.optimizers import build_optimizer
from tests.dpmodel.training.updates import Keeping, Silent

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SIZE, STEPS = 16, 16


ENTRIES = 30_000


def small():
    return nn.Sequential(nn.Linear(4, 200), nn.Tanh(), nn.Linear(200, 3))


def fitted(build, network=small, callbacks=(), seed=5, dtype=torch.float32, **options):
    torch.manual_seed(0)
    module, x = network().to("cuda", dtype), torch.randn(4 * SIZE, 4, dtype=dtype)
    noise = NoiseMechanismsFactory.create("AdaGaussian", noise_decay_rate=0.1, decay_policy="Exp", seed=seed)
    optimizer = build(module.parameters())
    model = DPModel(module, nn.CrossEntropyLoss(), optimizer, noise_mech=noise, device="cuda", seed=3, **options)
    loader = DataLoader(TensorDataset(x, torch.arange(4 * SIZE) % 3), batch_size=SIZE)
    model.fit(loader, STEPS // 4, callbacks=[Silence(), *callbacks])
    return model


def named(name, **args):
    return lambda parameters: build_optimizer(name, parameters, **args)


OPTIMIZERS = {
    "SGD": named("SGD", lr=0.1, momentum=0.9, nesterov=True),
    "Momentum": named("Momentum", lr=0.1),
    "Adam": named("Adam", lr=0.01),
    "AdamW": named("AdamW", lr=0.01, amsgrad=True),
    "not fused": lambda parameters: optim.SGD(parameters, lr=0.1, momentum=0.9),
    "capturable": lambda parameters: optim.NAdam(parameters, lr=0.01, capturable=True),
    "RMSprop": named("RMSprop", lr=0.01, capturable=True),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_replays_give_the_weights_of_the_updates(name, dtype):
    found, expected = Keeping(), Keeping()
    model = fitted(OPTIMIZERS[name], callbacks=[found], dtype=dtype)
    assert "updates were replayed as CUDA graphs" in model.explain_engine()
    fitted(OPTIMIZERS[name], callbacks=[expected], dtype=dtype, cuda_graphs=False)
    assert len(found.kept) == STEPS
    for replayed, weights in zip(found.kept, expected.kept, strict=True):
        torch.testing.assert_close(replayed, weights, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("seed", [0, 5])
def test_the_noise_of_replays_is_fresh_and_has_the_scale_of_its_step(seed):
    keeping = Keeping()
    model = fitted(
        lambda parameters: optim.SGD(parameters, lr=SIZE), partial(Silent, ENTRIES), [keeping], seed, norm_bound=0.5
    )
    assert "updates were replayed as CUDA graphs" in model.explain_engine()
    kept = torch.stack([torch.zeros(ENTRIES), *(value.cpu() for value in keeping.kept)])
    drawn = kept[:-1] - kept[1:]  # the noise of each step: the learning rate undoes the mean
    scales = torch.tensor([0.5 * model.noise_mech.noise_multiplier(step) for step in range(STEPS)])
    squares = (drawn / scales[:, None]).double().square().mean(dim=1)
    assert (squares - 1).abs().max() < 6 * (2 / ENTRIES) ** 0.5
    correlations = torch.corrcoef(drawn.double()) - torch.eye(STEPS)
    assert correlations.abs().max() < 6 / ENTRIES**0.5


def test_an_optimizer_that_computes_on_the_host_updates_without_replays():
    model = fitted(lambda parameters: optim.Adam(parameters, lr=0.01))
    assert "build it with fused=True or capturable=True" in model.explain_engine()
    assert model.steps_done == STEPS
