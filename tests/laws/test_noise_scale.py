"""The released noise has the scale that the ledger states: tests accept sigma, and reject 2/3 and 3/2 of it."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.utils.data import TensorDataset

from dpmodel import ClipMechanismsFactory, NoiseMechanismsFactory, poisson_loader
from dpmodel.model import DPModel
from mechanisms.clipping import CLIP
from mechanisms.engines.base import ClippedSum
from mechanisms.noise import NOISE
from monitors.schedules import DECAYS, PATHS

SIZE = 20_000
#: Training uses float32, which is made by a different transform than float64.
DTYPES = [torch.float32, torch.float64]
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def accepts(sample, scale):
    return stats.kstest(np.asarray(sample), stats.norm(scale=scale).cdf).pvalue > 1e-8


def mechanisms():
    decayed = [("AdaGaussian", {"decay_policy": policy, "noise_decay_rate": 0.2}) for policy in DECAYS.names()]
    shaped = [("ShapedGaussian", {"path": path, "last_step": 9, "final_ratio": 0.4}) for path in PATHS.names()]
    return [("Gaussian", {}), *decayed, *shaped, ("BandedMF", {"bands": 4})]


def test_the_table_lists_every_built_in_mechanism():
    assert {name for name, _ in mechanisms()} <= set(NOISE.names())
    own = {name for name in NOISE.names() if NOISE.get(name).__module__.startswith("mechanisms.")}
    assert {name for name, _ in mechanisms()} == own


@pytest.mark.parametrize(("name", "options"), mechanisms())
@pytest.mark.sample(3)
@pytest.mark.parametrize(("factor", "bound"), [(1.0, 1.0), (2.0, 0.1)])
@pytest.mark.parametrize("step", [0, 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_noise_is_the_multiplier_of_the_event_times_the_sensitivity(name, options, factor, bound, step, dtype):
    assert_stated_scale(name, options, factor, bound, step, dtype, "cpu")


@pytest.mark.cuda
@on_gpu
def test_the_noise_is_the_multiplier_of_the_event_times_the_sensitivity_on_the_device():
    for name, options in mechanisms():
        for dtype in DTYPES:
            assert_stated_scale(name, options, 2.0, 0.1, 5, dtype, "cuda")


def assert_stated_scale(name, options, factor, bound, step, dtype, device):
    noise = NoiseMechanismsFactory.create(name, initial_noise_multiplier=1.3, **options).prepared()
    sensitivity = factor * bound
    zeros = torch.zeros(SIZE, dtype=dtype, device=device)
    released = noise.add(ClippedSum(zeros, torch.zeros(0, 1), sensitivity, bound), step).cpu().numpy()
    stated = noise.event(step, factor).noise_multiplier * sensitivity
    # of correlated noise, the event states the independent part
    assert_scale(noise.innovations(released[None].astype(np.float64))[0], stated, (name, options, dtype))


def assert_scale(found, stated, case):
    assert accepts(found, stated), case
    assert not accepts(found, stated * 2 / 3), case
    assert not accepts(found, stated * 3 / 2), case


class NoGradient(nn.Module):
    """A network whose loss does not depend on its parameters, so that only noise moves them."""

    def __init__(self, dtype):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(SIZE, dtype=dtype))

    def forward(self, x):
        return x + 0.0 * self.weight.sum()


@pytest.mark.sample(32)
@pytest.mark.parametrize("clip", CLIP.names())
@pytest.mark.parametrize("micro_batches", [None, 5])
@pytest.mark.parametrize("sampling", ["poisson", "shuffle"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_update_of_a_step_has_the_noise_that_the_ledger_states(clip, micro_batches, sampling, dtype):
    assert_stated_update(clip, micro_batches, sampling, dtype, "cpu")


@pytest.mark.cuda
@on_gpu
def test_the_update_of_a_step_has_the_noise_that_the_ledger_states_on_the_device():
    for clip in CLIP.names():
        for micro_batches, sampling in ((None, "poisson"), (5, "shuffle")):
            assert_stated_update(clip, micro_batches, sampling, torch.float32, "cuda")


def assert_stated_update(clip, micro_batches, sampling, dtype, device):
    network, bound, batch = NoGradient(dtype), 0.5, 10
    clip_mech = ClipMechanismsFactory.create(clip)
    model = DPModel(
        network,
        lambda outputs, targets: (outputs - targets).square().mean(),
        torch.optim.SGD(network.parameters(), lr=1.0),
        norm_bound=bound,
        micro_batches=micro_batches,
        noise_mech=NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=2.0),
        clip_mech=clip_mech,
        sampling=sampling,
        device=device,
    )
    data = TensorDataset(torch.ones(batch, 1, dtype=dtype), torch.zeros(batch, 1, dtype=dtype))
    loader = poisson_loader(data, batch) if sampling == "poisson" else torch.utils.data.DataLoader(data, batch)
    model.fit(loader, epochs=1)
    ((event, count),) = model.ledger.rows
    while not hasattr(event, "noise_multiplier"):
        event = event.events[0] if hasattr(event, "events") else event.event
    units = micro_batches or batch
    sensitivity = bound * (2 if micro_batches else 1)
    stated = event.noise_multiplier * sensitivity / units
    moved = network.weight.detach().cpu().numpy()
    assert count == 1
    assert_scale(moved, stated, (clip, micro_batches, sampling))
