"""Fixtures of tests of updates: trainings, and recordings on a CPU."""

from __future__ import annotations

import pytest
import torch

from dpmodel import NoiseMechanismsFactory, poisson_loader
from dpmodel.training import update_graph
from mechanisms.rng import SecureGenerator
from tests.dpmodel.training.updates import SGD, SIZE, small
from tests.kernel_tape import on_tape


@pytest.fixture
def tapes(monkeypatch):
    """Lets updates on a CPU be recorded as operators, with noise made of operators too; returns all recordings."""
    made = []

    def counted(device):
        record = on_tape()

        def recording(function):
            made.append(function)
            return record(function)

        return recording

    def add_normal_(self, target, scale=1.0):
        return self.stream_on(target.device).add_normal_(target, scale)

    monkeypatch.setattr(SecureGenerator, "add_normal_", add_normal_)
    monkeypatch.setattr(update_graph, "DEVICES", ("cpu",))
    monkeypatch.setattr(update_graph, "as_cuda_graphs", counted)
    return made


@pytest.fixture
def fitted(make_model, make_data):
    def fit(build=SGD, network=small, callbacks=(), noise=None, epochs=2, keeper=None, **options):
        torch.manual_seed(0)
        module = network()
        noise = noise or NoiseMechanismsFactory.create("AdaGaussian", noise_decay_rate=0.01, seed=5)
        model = make_model(module, optimizer=build(module.parameters()), noise_mech=noise, seed=3, **options)
        model.history = model.fit(
            poisson_loader(make_data(), batch_size=SIZE), epochs=epochs, callbacks=callbacks, keeper=keeper
        )
        return model

    return fit
