"""Each planted fault turns the audit red, and no correct training does.

The faults are in the code that trains. The trials before a training, which would refuse some of them, are switched off:
the audit must see the faults by itself.
"""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dpmodel import ClipMechanismsFactory, DPModel, NoiseMechanismsFactory
from dpmodel.audit import audit
from dpmodel.training.step import PrivateStep
from dpmodel.training.update import Update
from mechanisms.clipping import CLIP
from mechanisms.engines import base
from mechanisms.engines.base import ENGINES
from mechanisms.engines.bookkeeping import engine as bookkeeping
from mechanisms.noise import NOISE
from mechanisms.rng import SecureGenerator
from mechanisms.sampling import SAMPLERS, PoissonSampler

FEATURES, CLASSES, ROWS = 12, 4, 400
#: Small, so that an audit takes about two seconds.
QUICK = {"examples": 300, "canaries": 900, "steps": 40, "rate": 0.25}


def softmax_regression(**options):
    network = nn.Linear(FEATURES, CLASSES)
    options.setdefault("noise_mech", NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=1.0))
    model = DPModel(network, nn.CrossEntropyLoss(), torch.optim.SGD(network.parameters(), lr=0.1), **options)
    data = TensorDataset(torch.randn(ROWS, FEATURES), torch.randint(0, CLASSES, (ROWS,)))
    return model, DataLoader(data, batch_size=40)


def red_lines(options=None, **settings):
    report = audit(*softmax_regression(**(options or {})), **{**QUICK, **settings})
    return {line.name for line in report.contradictions}


@pytest.fixture
def plant(monkeypatch):
    """Plants a fault by name."""
    monkeypatch.setattr("dpmodel.preflight.mechanisms.require_sound_noise", lambda *args, **options: ())
    monkeypatch.setattr("dpmodel.preflight.mechanisms.require_sound_clip", lambda *args, **options: ())
    monkeypatch.setattr("dpmodel.preflight.mechanisms.require_sound_sampler", lambda *args, **options: ())
    return lambda name: FAULTS[name][0](monkeypatch)


def scaled_noise(factor):
    def fault(monkeypatch):
        right = SecureGenerator.add_normal_
        monkeypatch.setattr(
            SecureGenerator, "add_normal_", lambda self, target, scale=1.0: right(self, target, scale * factor)
        )

    return fault


def changed_factors(change):
    def fault(monkeypatch):
        right = base.bounded_factors

        def wrong(norms, clip, *args, **options):
            return change(right(norms, clip, *args, **options), norms, clip)

        monkeypatch.setattr(base, "bounded_factors", wrong)
        monkeypatch.setattr(bookkeeping, "bounded_factors", wrong)

    return fault


def at_bounds(scale):
    """Clip each block to the same bound, that many times the norm bound."""
    return changed_factors(
        lambda factors, norms, clip: (scale * clip.norm_bound / norms.clamp(min=1e-9)).clamp(max=1.0)
    )


def every_row(monkeypatch):
    monkeypatch.setattr(PoissonSampler, "rows", lambda self, step: np.arange(self.num_examples))


def one_tensor_without_noise(monkeypatch):
    right = Update.descend

    def wrong(self, noisy):
        bias = slice(FEATURES * CLASSES, FEATURES * CLASSES + CLASSES)
        noisy[bias] = self.clean[bias]
        return right(self, noisy)

    def keep(self, summed):
        self.update.clean = summed.flat_grad.clone()
        return accounted(self, summed)

    accounted = PrivateStep._require_accounted
    monkeypatch.setattr(PrivateStep, "_require_accounted", keep)
    monkeypatch.setattr(Update, "descend", wrong)


def the_step_before_again(monkeypatch):
    accounted = PrivateStep._require_accounted

    def wrong(self, summed):
        now = summed.flat_grad.clone()
        summed.flat_grad.add_(getattr(self, "before", torch.zeros_like(now)))
        self.before = now
        return accounted(self, summed)

    monkeypatch.setattr(PrivateStep, "_require_accounted", wrong)


def seeded_noise(generator_of):
    def fault(monkeypatch):
        def wrong(self, target, scale=1.0):
            drawn = torch.randn(target.shape, generator=generator_of(self), dtype=target.dtype)
            return target.add_(drawn, alpha=float(scale))

        monkeypatch.setattr(SecureGenerator, "add_normal_", wrong)

    return fault


def of_each_training(generator):
    if not hasattr(generator, "planted"):
        generator.planted = torch.Generator().manual_seed(5)
    return generator.planted


PER_LAYER = {"clip_mech": "PerLayer"}

#: Name -> the fault, options of the model, and lines of which at least one must contradict the ledger.
FAULTS = {
    "noise over the square root of 2": (scaled_noise(1 / math.sqrt(2)), {}, {"first canary tensor"}),
    "half of the noise": (scaled_noise(1 / 2), {}, {"first canary tensor"}),
    "a quarter of the noise": (scaled_noise(1 / 4), {}, {"first canary tensor"}),
    "no clipping": (
        changed_factors(lambda factors, norms, clip: torch.ones_like(factors)),
        {},
        {"a canary over the sensitivity"},
    ),
    "clipping at twice the bound": (at_bounds(2.0), {}, {"a canary over the sensitivity"}),
    "each layer clipped at the whole bound": (at_bounds(1.0), PER_LAYER, {"a canary over the sensitivity"}),
    "the sum of the step before released again": (the_step_before_again, {}, {"a canary that is not drawn"}),
    "noise divided by the batch size": (scaled_noise(1 / 300), {}, {"first canary tensor"}),
    "every row in every batch": (every_row, {}, {"mean batch size"}),
    "one tensor without noise": (one_tensor_without_noise, {}, {"tensors of the network"}),
    "a generator seeded anew at every step": (
        seeded_noise(lambda generator: torch.Generator().manual_seed(5)),
        {},
        {"across steps"},
    ),
    "a noise stream replayed after resuming": (seeded_noise(of_each_training), {}, {"across steps"}),
}


def built(options):
    return {**options, **({"clip_mech": ClipMechanismsFactory.create("PerLayer")} if "clip_mech" in options else {})}


@pytest.mark.sample(12)
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_turns_the_audit_red(name, plant):
    _, options, expected = FAULTS[name]
    plant(name)
    assert expected <= red_lines(built(options)), name


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100))  # one false alarm in ten audits would be found with 96 %
def test_correct_code_stays_green_over_many_seeds(seed):
    torch.manual_seed(seed)
    report = audit(*softmax_regression(), **QUICK)
    assert report.ok, report.verdict
    assert all(line.value <= report.epsilon for line in report.lines if line.section == "bounds")


def built_in(registry):
    return [name for name in registry.names() if registry.get(name).__module__.startswith("mechanisms.")]


def registered():
    for name in built_in(NOISE):
        yield {"noise": name, "sampling": "cyclic_poisson" if NOISE.get(name).__name__ == "BandedMF" else "poisson"}
    yield from ({"clip": name} for name in built_in(CLIP))
    yield from ({"sampling": name} for name in built_in(SAMPLERS))
    yield from ({"engine": name} for name in built_in(ENGINES))
    yield {"micro_batches": 10}


@pytest.mark.slow
@pytest.mark.parametrize("choice", list(registered()), ids=lambda choice: "-".join(map(str, choice.values())))
def test_every_registered_mechanism_clip_sampler_and_engine_is_audited(choice):
    chosen = dict(choice)
    noise = NoiseMechanismsFactory.create(chosen.pop("noise", "Gaussian"), initial_noise_multiplier=1.0)
    clip = ClipMechanismsFactory.create(chosen.pop("clip", "Fixed"))
    assert red_lines({"noise_mech": noise, "clip_mech": clip, **chosen}) == set()
