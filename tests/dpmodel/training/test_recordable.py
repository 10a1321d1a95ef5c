"""What a replay of an update could leave out is not recorded, and explain_engine says why."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import nn, optim

from dpmodel.training.recordable import cannot_record
from dpmodel.training.update_graph import _is_fresh
from mechanisms.correlated.banded import BandedMF
from mechanisms.noise import AdaGaussian, Gaussian, ScheduledGaussian
from mechanisms.overriding import speaks_for
from mechanisms.rng import SecureGenerator
from tests.dpmodel.training.updates import SGD, require_same


class Counted(Gaussian):
    """Adds its noise in a way of its own."""

    calls = 0

    def add(self, summed, step):
        self.calls += 1
        return super().add(summed, step)


class OwnSGD(optim.SGD):
    pass


def replaced(parameters):
    optimizer, step = SGD(parameters), optim.SGD.step

    @functools.wraps(step)
    def twice(closure=None):
        step(optimizer)
        step(optimizer)

    optimizer.step = twice
    return optimizer


def exchanged(parameters):
    optimizer = SGD(parameters)
    optimizer._init_group = optimizer._init_group
    return optimizer


def scaled(parameters):
    optimizer = SGD(parameters, fused=True)
    optimizer.found_inf = torch.zeros(())
    return optimizer


def with_setting(value):
    def build(parameters):
        optimizer = SGD(parameters)
        optimizer.param_groups[0]["own"] = value
        return optimizer

    return build


def hooked(parameters):
    optimizer = SGD(parameters)
    optimizer.register_step_pre_hook(lambda *args: None)
    return optimizer


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"noise": Counted()}, "does not just add independent normal noise to the sum"),
        ({"build": OwnSGD}, "OwnSGD is not an optimizer of torch"),
        ({"build": optim.Adam}, "Adam computes on the host; build it with fused=True or capturable=True"),
        ({"build": optim.Adafactor}, "Adafactor computes on the host"),
        ({"build": functools.partial(SGD, lr=torch.tensor(0.1))}, "SGD computes on the host; build it with fused=True"),
        ({"build": functools.partial(SGD, momentum=0.9, nesterov=True, foreach=True)}, "writes to the gradients"),
        ({"build": replaced}, "step of SGD was replaced"),
        ({"build": exchanged}, "_init_group of SGD was replaced"),
        ({"build": hooked}, "SGD has a step hook"),
        ({"build": scaled}, "SGD has grad_scale or found_inf"),
        ({"build": with_setting(np.array(0.1))}, "the setting own of SGD is neither a number nor a tensor"),
        ({"build": with_setting([torch.ones(1), {}])}, "the setting own of SGD is neither a number nor a tensor"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_replay_could_leave_out_is_not_recorded(options, reason, fitted, tapes):
    model = fitted(**options)
    assert not tapes
    assert reason in model.explain_engine()


@pytest.mark.parametrize(("kind", "independent"), [(Gaussian, True), (AdaGaussian, True), (BandedMF, False)])
def test_only_mechanisms_of_independent_noise_state_their_scale(kind, independent):
    assert speaks_for(kind(), "added_scale", "add") == independent


def test_an_exchanged_generator_is_not_recorded(fitted, tapes):
    class Constant(SecureGenerator):
        def add_normal_(self, target, scale=1.0):
            return target.add_(scale)

    noise = Gaussian()
    noise.generator = Constant()
    fitted(noise=noise)
    assert not tapes


class Misstated(Gaussian):
    """Adds the right noise, and states another scale for replays at bounds and steps that no trial covers."""

    def add(self, summed, step):
        return self.generator.add_normal_(summed.flat_grad, self.schedule(step) * summed.norm_bound)

    def added_scale(self, step, norm_bound):
        return 1.0 if step < 6 else 1e-3


def test_a_scale_that_is_not_that_of_the_event_is_not_replayed(fitted, tapes, monkeypatch):
    monkeypatch.setattr("mechanisms.noise_check._Trial._require_same_scale", lambda self, steps: None)
    found = fitted(noise=Misstated(seed=5))
    assert "does not just add independent normal noise to the sum" in found.explain_engine()
    require_same(found, fitted(noise=Misstated(seed=5), cuda_graphs=False))


@pytest.mark.parametrize("name", ["lr", "betas"])
def test_settings_that_are_tensors_of_the_host_are_not_recorded(name):
    optimizer = optim.Adam([nn.Parameter(torch.zeros(2))], fused=True)
    assert cannot_record(optimizer, SecureGenerator(), torch.device("cuda", 0)) is None
    value = torch.tensor(0.1)
    optimizer.param_groups[0][name] = (value, value) if name == "betas" else value
    assert cannot_record(optimizer, SecureGenerator(), torch.device("cpu")) is None
    refusal = cannot_record(optimizer, SecureGenerator(), torch.device("cuda", 0))
    assert refusal == f"the setting {name} of Adam is a tensor that is not on cuda:0"


@pytest.mark.parametrize("hook", [[].append, functools.partial(print)])
def test_hooks_of_any_kind_are_not_recorded(hook):
    optimizer = SGD([nn.Parameter(torch.zeros(2))])
    optimizer.register_step_post_hook(hook)
    assert cannot_record(optimizer, SecureGenerator(), torch.device("cpu")) == "SGD has a step hook"


@pytest.mark.parametrize("size", [1, 2, 10, 1000])
def test_true_noise_is_hardly_ever_refused(size):
    drawn = SecureGenerator().normal(2 * 2000 * size, torch.float32).view(2000, 2, size)
    assert all(_is_fresh(one, other, size) for one, other in drawn)
    assert not any(_is_fresh(one, one, size) for one, _ in drawn[:5])


def test_a_step_that_was_wrapped_on_its_class_is_not_recorded(fitted, tapes, monkeypatch):
    step, calls = optim.SGD.step, []

    @functools.wraps(step)
    def counted(self, closure=None):
        calls.append(self)
        return step(self, closure)

    monkeypatch.setattr(optim.SGD, "step", counted)
    model = fitted()
    assert not tapes
    assert len(calls) >= model.steps_done


@pytest.mark.parametrize("place", ["class", "generator"])
def test_noise_whose_code_was_replaced_is_not_recorded(place, fitted, tapes, monkeypatch):
    noise, add = Gaussian(seed=5), ScheduledGaussian.add
    if place == "class":
        monkeypatch.setattr(ScheduledGaussian, "add", lambda self, summed, step: add(self, summed, step))
    else:
        noise.generator.add_normal_ = functools.partial(SecureGenerator.add_normal_, noise.generator)
    fitted(noise=noise)
    assert not tapes
