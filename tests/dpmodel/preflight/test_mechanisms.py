from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from dpmodel import ClipMechanismsFactory, NoiseMechanismsFactory
from mechanisms import Gaussian, PoissonSampler
from mechanisms.clipping import Fixed
from mechanisms.noise import NoNoise
from mechanisms.sampling import SAMPLERS
from monitors.errors import UnprotectedUpdateError
from monitors.events import GaussianEvent, PrivacyEvent, register_event
from monitors.renyi import renyi_curve, sampled_renyi_curve


class Quiet(Gaussian):
    def sample(self, size, step):
        return super().sample(size, step) / 10

    def add(self, summed, step):
        return summed.flat_grad.add_(self.sample(len(summed.flat_grad), step).to(summed.flat_grad) * summed.norm_bound)


class CheapMedian(Fixed):
    def event(self, step, unit):
        return GaussianEvent(1e6)

    def update(self, norms, unit, step):
        self._norm_bound = float(norms.median()) if len(norms) else self.norm_bound


class FixedSize(PoissonSampler):
    name = "fixed size"

    def rows(self, step):
        return np.sort(self.generator.permutation(self.num_examples)[: self.batch_size])


@pytest.fixture(autouse=True)
def _fixed_size(monkeypatch):
    monkeypatch.setitem(SAMPLERS._builders, FixedSize.name, FixedSize)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"noise_mech": Quiet()}, "Quiet"),
        ({"clip_mech": CheapMedian()}, "CheapMedian"),
        ({"sampling": "fixed size"}, "FixedSize"),
    ],
)
def test_a_wrong_plugin_is_refused_before_anything_is_released(make_model, loader, options, name):
    model = make_model(**options)
    weights = [value.clone() for value in model.network.parameters()]
    for _ in range(2):
        with pytest.raises(UnprotectedUpdateError, match=f"^{name} failed its trial"):
            model.fit(loader, epochs=1)
    assert (model.ledger.rows, model.ledger.notes, model.steps_done) == ((), (), 0)
    assert all(torch.equal(*pair) for pair in zip(weights, model.network.parameters(), strict=True))


def test_wrong_noise_and_samplers_may_train_without_privacy(make_model, loader):
    model = make_model(noise_mech=NoNoise(), sampling="fixed size")
    model.fit(loader, epochs=1)
    assert model.ledger.total == 4


def trained(make_model, loader, monkeypatch, *, tried):
    if not tried:
        monkeypatch.setattr("dpmodel.preflight.trial.require_sound_mechanisms", lambda *given: ())
    torch.manual_seed(1)
    network = nn.Linear(4, 3)
    model = make_model(
        network,
        noise_mech=NoiseMechanismsFactory.create("AdaGaussian", initial_noise_multiplier=1.2, seed=3),
        clip_mech=ClipMechanismsFactory.create("Gaussian", seed=4),
        seed=5,
    )
    for _ in range(2):
        model.fit(loader, epochs=1)
    return [*network.parameters()], model.clip_mech.norm_bound, model.ledger


def test_a_seeded_training_is_the_same_with_and_without_the_trials(make_model, loader, monkeypatch):
    weights, bound, ledger = trained(make_model, loader, monkeypatch, tried=True)
    others, other_bound, other_ledger = trained(make_model, loader, monkeypatch, tried=False)
    assert all(torch.equal(*pair) for pair in zip(weights, others, strict=True))
    assert (bound, ledger) == (other_bound, other_ledger)


def test_parts_that_could_not_be_tried_are_announced_and_noted_on_the_ledger(make_model, loader, capsys):
    @register_event
    @dataclass(frozen=True)
    class StrangeEvent(PrivacyEvent):
        pass

    @renyi_curve.register(StrangeEvent)
    def _(event, orders):
        return np.ones_like(orders)

    @sampled_renyi_curve.register(StrangeEvent)
    def _(event, sampling_rate, orders):
        return np.ones_like(orders)

    class Strange(Gaussian):
        def event(self, step, sensitivity_factor=1.0):
            return StrangeEvent()

    model = make_model(noise_mech=Strange())
    model.fit(loader, epochs=1)
    note = "the scale of the noise of Strange was not tried: its event (StrangeEvent) does not state normal noise"
    assert model.ledger.notes == (note,)
    assert note in capsys.readouterr().out


def test_each_mechanism_is_tried_once_for_many_trainings(make_model, loader):
    tried = []

    class Counted(Gaussian):
        def add(self, summed, step):
            tried.append(step)
            return super().add(summed, step)

    counts = []
    for _ in range(3):
        before = len(tried)
        make_model(noise_mech=Counted()).fit(loader, epochs=1)
        counts.append(len(tried) - before)
    assert counts[0] > 10
    assert counts[1:] == [4, 4]
