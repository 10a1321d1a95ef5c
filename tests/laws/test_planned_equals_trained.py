"""The ledger planned without data equals the ledger that training writes, for every mechanism and schedule."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dpmodel import ClipMechanismsFactory, DPModel, NoiseMechanismsFactory
from dpmodel.planning.release import ReleasePlan
from mechanisms.clipping import CLIP
from mechanisms.sampling import SAMPLERS
from mechanisms.units import ClippedUnit
from monitors.schedules import DECAYS, PATHS

NOISES = [
    ("Gaussian", {}),
    *(("AdaGaussian", {"decay_policy": policy, "noise_decay_rate": 0.05}) for policy in DECAYS.names()),
    *(("ShapedGaussian", {"path": path, "last_step": 6, "final_ratio": 1.5}) for path in PATHS.names()),
]


class Shifted:
    """Adds a random number to each view."""

    numbers = 1

    def __call__(self, examples, numbers):
        return examples + numbers


def build(noise, options, clip):
    return (
        NoiseMechanismsFactory.create(noise, initial_noise_multiplier=1.2, **options),
        ClipMechanismsFactory.create(clip),
    )


@pytest.mark.sample(4)
@pytest.mark.parametrize("part", range(4))
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    noise=st.sampled_from(NOISES),
    clip=st.sampled_from(CLIP.names()),
    sampling=st.sampled_from(SAMPLERS.names()),
    micro_batches=st.sampled_from([None, 2, 4, 8]),
    n=st.integers(8, 30),
    epochs=st.integers(1, 3),
    fits=st.integers(1, 2),
    views=st.sampled_from([None, 1, 3]),
)
def test_planned_ledger_equals_trained_ledger(part, noise, clip, sampling, micro_batches, n, epochs, fits, views):
    network = nn.Linear(2, 2)
    noise_mech, clip_mech = build(*noise, clip)
    model = DPModel(
        network,
        nn.CrossEntropyLoss(),
        torch.optim.SGD(network.parameters(), lr=0.1),
        micro_batches=micro_batches,
        norm_bound=0.7,
        noise_mech=noise_mech,
        clip_mech=clip_mech,
        sampling=sampling,
        engine="loop",
        augmentation=views and Shifted(),
        augmentation_multiplicity=views or 1,
    )
    data = TensorDataset(torch.randn(n, 2), torch.randint(0, 2, (n,)))
    for _ in range(fits):
        model.fit(DataLoader(data, batch_size=8), epochs=epochs)
    sampler = SAMPLERS.create(sampling, n, 8)
    plan = ReleasePlan(*build(*noise, clip), ClippedUnit.of(8, micro_batches), sampler)
    steps = fits * epochs * (n // 8)
    assert model.ledger == plan.ledger(steps)
    assert model.ledger == plan.at(3.0).at(1.2).ledger(steps)
    assert model.ledger.total == steps == model.steps_done
