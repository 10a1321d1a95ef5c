"""Trainings with static shapes: the same weights, ledger, metrics and counts as without, also after an interruption."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dpmodel import ClipMechanismsFactory, NoiseMechanismsFactory, StateKeeper
from dpmodel.planning.release import ReleasePlan
from mechanisms.engines import ENGINES
from mechanisms.sampling import SAMPLERS
from mechanisms.units import ClippedUnit

from .power_cut import Interrupt
from .saving.trainings import SECRET, build, fit


def mechanisms(clip):
    options = {"seed": 3} if clip == "Gaussian" else {}
    return (
        NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=0.8, seed=5),
        ClipMechanismsFactory.create(clip, **options),
    )


def trained(make_model, *, static, clip="Gaussian", sampling="poisson", micro_batches=None, broken=False, **options):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    data = TensorDataset(torch.randn(40, 4).double(), torch.randint(0, 3, (40,)))
    if broken:
        data.tensors[0][::3] = float("nan")
    noise_mech, clip_mech = mechanisms(clip)
    model = make_model(
        network,
        noise_mech=noise_mech,
        clip_mech=clip_mech,
        sampling=sampling,
        micro_batches=micro_batches,
        seed=7,
        static_shapes=static,
        **options,
    )
    return model, model.fit(DataLoader(data, 8), epochs=2)


@pytest.mark.sample(48)
@pytest.mark.parametrize("sampling", ["poisson", "shuffle"])
@pytest.mark.parametrize("micro_batches", [None, 4])
@pytest.mark.parametrize("physical", [None, 3])
@pytest.mark.parametrize("clip", ["Gaussian", "PerLayer"])
@pytest.mark.parametrize("engine", ENGINES.names())
def test_a_training_has_the_same_weights_losses_and_bounds(make_model, engine, clip, physical, micro_batches, sampling):
    options = {"engine": engine, "physical_batch_size": physical, "micro_batches": micro_batches, "sampling": sampling}
    (plain, was), (static, history) = (trained(make_model, static=on, clip=clip, **options) for on in (False, True))
    for one, other in zip(static.network.parameters(), plain.network.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    assert [row.loss for row in history] == pytest.approx([row.loss for row in was])
    assert static.clip_mech.norm_bound == plain.clip_mech.norm_bound
    assert static.ledger == plain.ledger
    sampler, unit = SAMPLERS.create(sampling, 40, 8), ClippedUnit.of(8, micro_batches)
    planned = ReleasePlan(*mechanisms(clip), unit, sampler).ledger(10)  # without notes on the seeds
    assert list(static.ledger) == list(planned)
    assert "static shapes" in static.explain_engine()


def test_units_without_a_finite_gradient_are_counted_alike(make_model, capsys):
    lines = []
    for static in (False, True):
        trained(make_model, static=static, broken=True)
        lines.append([line for line in capsys.readouterr().out.splitlines() if "left out" in line])
    assert lines[0] == lines[1] != []


@pytest.mark.slow
def test_a_resumed_training_equals_the_uninterrupted_one(tmp_path):
    case = {**SECRET, "static_shapes": True}
    torch.manual_seed(0)
    whole = build(case)
    fit(whole, case, keeper=StateKeeper(tmp_path / "whole", 2))
    torch.manual_seed(0)
    with contextlib.suppress(KeyboardInterrupt):
        fit(build(case), case, Interrupt(5), keeper=StateKeeper(tmp_path / "cut", 2))
    torch.manual_seed(200)
    resumed = build(case)
    fit(resumed, case, keeper=StateKeeper(tmp_path / "cut", 2, resume=True))
    pairs = zip(whole.network.parameters(), resumed.network.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert whole.ledger == resumed.ledger
