import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechanisms import ClippedUnit, NoiseMechanismsFactory
from mechanisms.noise import NOISE, Gaussian, NoiseMechanism, NoNoise
from mechanisms.noise_check import require_sound_noise
from monitors.errors import UnprotectedUpdateError
from monitors.events import GaussianEvent, NonPrivateEvent, PrivacyEvent
from monitors.schedules import DECAYS, PATHS

from .wrong_noise import (
    LONG,
    WRONG,
    Drawn,
    DrawnOnce,
    FollowsNumPy,
    FollowsPython,
    FollowsTorch,
    ForgetsTheBound,
    ForgetsTheFactor,
    OneNumber,
    Quiet,
    SeededByTheStep,
    SeedsTorch,
    Silent,
)

EXAMPLE, GROUP = ClippedUnit(1, 32), ClippedUnit(2, 16)


@pytest.mark.parametrize(("wrong", "finding"), WRONG, ids=lambda value: getattr(value, "__name__", ""))
def test_noise_that_does_not_match_its_event_is_refused(wrong, finding):
    with pytest.raises(UnprotectedUpdateError, match=rf"^{wrong.__name__} failed its trial.*{finding}"):
        require_sound_noise(wrong(initial_noise_multiplier=3.0), EXAMPLE, LONG)


@pytest.mark.parametrize("wrong", [Quiet, Silent, ForgetsTheBound, DrawnOnce, SeedsTorch, FollowsTorch, OneNumber])
@pytest.mark.parametrize("steps", [range(1), range(5, 7)])
def test_wrong_noise_is_also_refused_for_short_runs(wrong, steps):
    with pytest.raises(UnprotectedUpdateError):
        require_sound_noise(wrong(initial_noise_multiplier=3.0), EXAMPLE, steps)


def test_an_event_without_the_sensitivity_factor_is_refused_only_for_micro_batches():
    require_sound_noise(ForgetsTheFactor(), EXAMPLE, LONG)
    with pytest.raises(UnprotectedUpdateError, match="Divide the multiplier in event by sensitivity_factor"):
        require_sound_noise(ForgetsTheFactor(), GROUP, LONG)


class TwoScales(Gaussian):
    """Adds the right noise, and states another scale for replays of it."""

    def add(self, summed, step):
        return self.generator.add_normal_(summed.flat_grad, self.schedule(step) * summed.norm_bound)

    def added_scale(self, step, norm_bound):
        return super().added_scale(step, norm_bound) / 2


class HalfAdded(Gaussian):
    """Adds and states half of the noise of its event."""

    def added_scale(self, step, norm_bound):
        return super().added_scale(step, norm_bound) / 2


@pytest.mark.parametrize(
    ("wrong", "finding"),
    [(TwoScales, r"added_scale returned 0\.5 .* event states 1\."), (HalfAdded, "times the stated one")],
)
def test_a_scale_for_replays_that_is_not_that_of_the_event_is_refused(wrong, finding):
    with pytest.raises(UnprotectedUpdateError, match=f"failed its trial.*{finding}"):
        require_sound_noise(wrong(), EXAMPLE, LONG)


# Correct mechanisms


class OutOfPlace(Gaussian):
    """Leaves the sum unchanged and returns a new tensor."""

    def add(self, summed, step):
        return summed.flat_grad + self.sample(summed.flat_grad.numel(), step).to(summed.flat_grad) * summed.norm_bound


class OneSizeOnly(Gaussian):
    """Supports only networks with 300 parameters."""

    def add(self, summed, step):
        if summed.flat_grad.numel() != 300:
            raise ValueError("300 parameters")
        return super().add(summed, step)


class FromADevice(Drawn):
    """Random numbers from the operating system, through an object that cannot be copied."""

    def __init__(self, **options):
        super().__init__(**options)
        self.device = random.SystemRandom()

    def noise(self, size, step):
        return torch.tensor([self.device.gauss(0, 1) for _ in range(size)], dtype=torch.float64)


class ByTheSensitivity(Gaussian):
    """Scales the noise by the sensitivity, so its event has no factor to divide by."""

    def event(self, step, sensitivity_factor=1.0):
        return GaussianEvent(self.schedule(step))

    def add(self, summed, step):
        return self.generator.add_normal_(summed.flat_grad, self.schedule(step) * summed.sensitivity)


@pytest.mark.parametrize("right", [OutOfPlace, OneSizeOnly, FromADevice, ByTheSensitivity])
def test_sound_custom_mechanisms_pass(right):
    assert require_sound_noise(right(), GROUP, range(30), like=torch.zeros(300)) == ()


@settings(max_examples=20, deadline=None)
@given(
    data=st.data(),
    name=st.sampled_from([name for name in NOISE.names() if NOISE.get(name).__module__.startswith("mechanisms.")]),
    multiplier=st.floats(1e-3, 1e3),
    norm_bound=st.floats(1e-4, 1e4),
    first=st.integers(0, 10_000),
    count=st.integers(1, 5_000),
    unit=st.sampled_from([EXAMPLE, GROUP, ClippedUnit(1, 1)]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 3),
)
def test_every_built_in_mechanism_passes(data, name, multiplier, norm_bound, first, count, unit, dtype, seed):
    options = {
        "Gaussian": st.just({}),
        "BandedMF": st.fixed_dictionaries({"bands": st.integers(1, 40)}),
        "AdaGaussian": st.fixed_dictionaries(
            {"decay_policy": st.sampled_from(DECAYS.names()), "noise_decay_rate": st.floats(0, 1e-3)}
        ),
        "ShapedGaussian": st.fixed_dictionaries(
            {"path": st.sampled_from(PATHS.names()), "final_ratio": st.floats(0.1, 10), "last_step": st.integers(1, 99)}
        ),
    }[name]
    options = data.draw(options)
    noise = NoiseMechanismsFactory.create(name, initial_noise_multiplier=multiplier, seed=seed, **options).prepared()
    like = torch.zeros(10, dtype=dtype)
    assert require_sound_noise(noise, unit, range(first, first + count), norm_bound=norm_bound, like=like) == ()


@pytest.mark.slow
def test_hundreds_of_trials_of_correct_noise_pass():
    for number in range(200):
        # A different multiplier makes a different mechanism, so no trial is skipped.
        require_sound_noise(Gaussian(initial_noise_multiplier=1.0 + number / 1000), EXAMPLE, LONG)


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("make", [Gaussian, Drawn, DrawnOnce], ids=lambda make: make.__name__)
def test_the_mechanism_is_unchanged(make, seed):
    noise = make(seed=seed)
    before = dict(vars(noise)), noise.generator.position
    try:
        require_sound_noise(noise, EXAMPLE, LONG)
    except UnprotectedUpdateError:
        assert make is DrawnOnce
    assert (dict(vars(noise)), noise.generator.position) == before


def test_a_seeded_stream_in_a_closure_keeps_its_position():
    class Closed(Gaussian):
        def __init__(self, **options):
            super().__init__(**options)
            stream = self.generator
            self.draw = lambda size: stream.normal(size)

        def sample(self, size, step):
            return self.draw(size) * self.schedule(step)

        add = NoiseMechanism.add

    noise = Closed(seed=5)
    require_sound_noise(noise, EXAMPLE, LONG)
    assert torch.equal(noise.sample(9, 0), Closed(seed=5).sample(9, 0))


def test_public_generators_are_unchanged():
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    for wrong in (SeedsTorch, FollowsNumPy, FollowsPython):
        with pytest.raises(UnprotectedUpdateError):
            require_sound_noise(wrong(), EXAMPLE, LONG)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


# Other events


class OtherEvent(PrivacyEvent):
    """An event that does not state normal noise."""


class Other(Drawn):
    def event(self, step, sensitivity_factor=1.0):
        return OtherEvent()


def test_an_unknown_event_is_noted_and_its_noise_gets_the_general_tests():
    class OtherSilent(Other):
        add = Silent.add

    class OtherOnce(Other):
        noise = DrawnOnce.noise

    class OtherPublic(Other):
        noise = SeededByTheStep.noise

    (note,) = require_sound_noise(Other(), EXAMPLE, LONG)
    assert note == "the scale of the noise of Other was not tried: its event (OtherEvent) does not state normal noise"
    for wrong, finding in ((OtherSilent, "no noise"), (OtherOnce, "same noise"), (OtherPublic, "two copies")):
        with pytest.raises(UnprotectedUpdateError, match=finding):
            require_sound_noise(wrong(), EXAMPLE, LONG)


def test_only_the_event_decides_that_a_mechanism_claims_no_privacy():
    class SaysNoPrivacy(Silent):
        private = False

    class StatesNoPrivacy(Silent):
        def event(self, step, sensitivity_factor=1.0):
            return NonPrivateEvent()

    assert require_sound_noise(NoNoise(), EXAMPLE, LONG) == ()
    assert require_sound_noise(StatesNoPrivacy(), EXAMPLE, LONG) == ()
    with pytest.raises(UnprotectedUpdateError):
        require_sound_noise(SaysNoPrivacy(), EXAMPLE, LONG)
