import copy
import math
import pickle
import tracemalloc

import pytest
import torch

from mechanisms.engines.base import ClippedSum
from mechanisms.factory import NoiseMechanismsFactory
from mechanisms.noise import NOISE, AdaGaussian, Gaussian, NoiseMechanism, NoNoise
from monitors.events import GaussianEvent, NonPrivateEvent
from monitors.schedules import DECAYS, decayed


class Flat(NoiseMechanism):
    """A custom mechanism that defines only its noise and its cost."""

    def noise_multiplier(self, step):
        return 1.0

    def event(self, step, sensitivity_factor=1.0):
        return NonPrivateEvent()

    def sample(self, size, step):
        return torch.ones(size)


def clipped(size=4000, norm_bound=1.0, factor=1.0, dtype=torch.float64):
    return ClippedSum(
        flat_grad=torch.zeros(size, dtype=dtype),
        norms=torch.zeros(0, 1),
        sensitivity=factor * norm_bound,
        norm_bound=norm_bound,
    )


@pytest.mark.parametrize("policy", DECAYS.names())
@pytest.mark.parametrize("step", [0, 1, 7])
def test_the_event_and_the_noise_follow_one_schedule(policy, step):
    noise = AdaGaussian(initial_noise_multiplier=2.0, noise_decay_rate=0.1, decay_policy=policy, seed=1)
    stated = noise.event(step).noise_multiplier
    size = 200_000
    drawn = noise.add(clipped(size, norm_bound=0.5), step)
    assert drawn.std().item() == pytest.approx(0.5 * stated, rel=5 / math.sqrt(2 * size))


@pytest.mark.parametrize(
    ("policy", "expected"), [("Time", 2.0 / (1 + 0.1 * 3)), ("Step", 2.0 * 0.9**3), ("Exp", 2.0 * math.exp(-0.3))]
)
def test_decay_policies_follow_their_formulas_and_the_first_step_is_undecayed(policy, expected):
    noise = AdaGaussian(initial_noise_multiplier=2.0, noise_decay_rate=0.1, decay_policy=policy)
    assert noise.event(0) == GaussianEvent(2.0)
    assert noise.event(3).noise_multiplier == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Gaussian", {}),
        ("AdaGaussian", {"decay_policy": "Time", "noise_decay_rate": 0.5}),
        ("ShapedGaussian", {"last_step": 8, "final_ratio": 0.25, "path": "Cosine"}),
    ],
)
def test_a_mechanism_at_a_different_multiplier_equals_the_one_that_the_factory_builds(name, options):
    first = NoiseMechanismsFactory.create(name, initial_noise_multiplier=4.0, norm_bound=0.5, **options)
    scaled = first.at(1.5).at(2.0)
    built = NoiseMechanismsFactory.create(name, initial_noise_multiplier=2.0, norm_bound=0.5, **options)
    assert repr(scaled) == repr(built)
    assert scaled.norm_bound == 0.5
    assert [scaled.event(step) for step in range(12)] == [built.event(step) for step in range(12)]
    assert first.noise_multiplier(0) == 4.0


def test_a_mechanism_at_a_different_multiplier_has_a_new_secret_stream_or_restarts_its_seed():
    secret = NoiseMechanismsFactory.create("Gaussian")
    assert not torch.equal(secret.at(1.0).sample(64, 0), secret.at(1.0).sample(64, 0))
    seeded = NoiseMechanismsFactory.create("Gaussian", seed=5)
    drawn = seeded.sample(64, 0)
    assert torch.equal(seeded.at(1.0).sample(64, 0), drawn)
    assert seeded.at(1.0).generator.reproducible


def test_a_mechanism_built_by_a_registered_function_is_rebuilt_by_it():
    @NoiseMechanismsFactory.register("Doubled")
    def doubled(initial_noise_multiplier, seed=0):
        return Gaussian(initial_noise_multiplier=2 * initial_noise_multiplier, seed=seed)

    try:
        noise = NoiseMechanismsFactory.create("Doubled", initial_noise_multiplier=1.0)
        assert pickle.loads(pickle.dumps(noise)).at(3.0).noise_multiplier(0) == 6.0
        assert copy.deepcopy(noise).at(3.0).noise_multiplier(0) == 6.0
    finally:
        del NOISE._builders["Doubled"]


def test_a_mechanism_that_no_factory_built_cannot_get_a_different_multiplier():
    with pytest.raises(ValueError, match=r"Flat\(.*initial_noise_multiplier=2, .*NoiseMechanismsFactory\.create"):
        Flat().at(2.0)


def test_the_noise_follows_the_bound_in_force_not_the_initial_one():
    noise = Gaussian(initial_noise_multiplier=1.0, norm_bound=1.0, seed=2)
    assert noise.add(clipped(100_000, norm_bound=0.25), 0).std().item() == pytest.approx(0.25, rel=0.02)


def test_a_sensitivity_of_twice_the_bound_halves_the_recorded_multiplier():
    assert Gaussian(initial_noise_multiplier=1.0).event(0, sensitivity_factor=2.0) == GaussianEvent(0.5)


@pytest.mark.parametrize("mechanism", [Gaussian(), AdaGaussian(), Flat()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_release_overwrites_the_sum(mechanism, dtype):
    summed = clipped(1000, dtype=dtype)
    released = mechanism.add(summed, 0)
    assert released.data_ptr() == summed.flat_grad.data_ptr()
    assert released.dtype == dtype
    assert (released != 0).sum() > 990


def test_noise_for_a_large_model_needs_a_fraction_of_the_model_s_memory():
    noise, summed = Gaussian(), clipped(8_000_000, dtype=torch.float32)
    tracemalloc.start()
    try:
        noise.add(summed, 0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.1 * summed.flat_grad.nbytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bound", [1e-30, 0.3, 1e30])
def test_noise_is_added_to_the_sum_at_the_bound_s_scale_in_every_type(dtype, bound):
    size = 100_000
    summed = clipped(size, norm_bound=bound, dtype=dtype)
    summed.flat_grad.fill_(5.0 * bound)
    released = Gaussian(initial_noise_multiplier=2.0, seed=3).add(summed, 0).double() / bound
    assert released.mean().item() == pytest.approx(5.0, abs=2.0 * 5 / math.sqrt(size) + 0.01)
    assert released.std().item() == pytest.approx(2.0, rel=0.02)


def test_no_noise_is_accounted_as_not_private():
    noise = NoNoise()
    assert noise.event(0) == NonPrivateEvent()
    assert torch.equal(noise.add(clipped(5), 0), torch.zeros(5, dtype=torch.float64))
    assert not noise.private


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "1", True, None])
def test_an_invalid_multiplier_is_refused_with_its_value(value):
    with pytest.raises(ValueError, match="initial_noise_multiplier must be a positive finite number, got"):
        NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=value)


@pytest.mark.parametrize("name", NoiseMechanismsFactory.names())
def test_every_registered_mechanism_is_built_by_the_factory_with_mindarmour_arguments(name):
    noise = NoiseMechanismsFactory().create(name, norm_bound=1.5, initial_noise_multiplier=1.5, decay_policy=None)
    assert noise.noise_multiplier(0) == 1.5
    assert not noise.generator.reproducible


def test_unsupported_arguments_are_refused():
    with pytest.raises(ValueError, match="decay_policy='Time' has no meaning for noise mechanism 'Gaussian'"):
        NoiseMechanismsFactory.create("Gaussian", decay_policy="Time")
    with pytest.raises(ValueError, match=r"noise_multipler=2\.0 has no meaning"):
        NoiseMechanismsFactory.create("Gaussian", noise_multipler=2.0)


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'AdaGaussian'"):
        NoiseMechanismsFactory.create("AdaGausian")
    with pytest.raises(ValueError, match="did you mean 'Time'"):
        NoiseMechanismsFactory.create("AdaGaussian", decay_policy="time")


@pytest.mark.parametrize("name", NOISE.names())
def test_a_pickled_mechanism_keeps_its_schedule_but_not_the_key_of_its_noise(name):
    shape = {"final_ratio": 0.5, "first_step": 2, "last_step": 9}
    options = {"ShapedGaussian": shape, "BandedMF": {"bands": 4}}.get(name, {})
    mechanism = NOISE.create(name, initial_noise_multiplier=1.5, **options).prepared()
    copied = pickle.loads(pickle.dumps(mechanism))
    assert [copied.event(step) for step in range(20)] == [mechanism.event(step) for step in range(20)]
    assert not torch.equal(copied.sample(50, 0), mechanism.sample(50, 0))


def test_all_registered_schedules_can_be_pickled():
    for policy in DECAYS.names():
        schedule = decayed(2.0, policy, 0.125)
        copied = pickle.loads(pickle.dumps(schedule))
        assert [copied(step) for step in range(10)] == [schedule(step) for step in range(10)]
