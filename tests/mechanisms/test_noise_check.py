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

EXAMPLE, GROUP = ClippedUnit(1, 32), ClippedUnit(2, 16)
LONG = range(1000)


class Drawn(Gaussian):
    """A plugin that draws by itself: ``noise(size, step)`` is what is added for a standard deviation of 1."""

    def noise(self, size, step):
        return self.generator.normal(size)

    def add(self, summed, step):
        grad = summed.flat_grad
        noise = self.noise(grad.numel(), step) * self.schedule(step) * summed.norm_bound
        return grad.add_(noise.to(grad))


# Scale


class Quiet(Drawn):
    def noise(self, size, step):
        return 0.1 * self.generator.normal(size)


class TenPercentLess(Drawn):
    def noise(self, size, step):
        return 0.9 * self.generator.normal(size)


class TwoPercentLess(Drawn):
    def noise(self, size, step):
        return 0.98 * self.generator.normal(size)


class TwiceAsMuch(Drawn):
    def noise(self, size, step):
        return 2 * self.generator.normal(size)


class Silent(Gaussian):
    def add(self, summed, step):
        return summed.flat_grad


class ForgetsTheBound(Gaussian):
    def add(self, summed, step):
        return self.generator.add_normal_(summed.flat_grad, self.schedule(step))


class OverTheBatch(Drawn):
    def noise(self, size, step):
        return self.generator.normal(size) / 32


class QuietLater(Drawn):
    def noise(self, size, step):
        return (1.0 if step < 300 else 0.3) * self.generator.normal(size)


class QuietAtTheEnd(Drawn):
    def noise(self, size, step):
        return (0.5 if step == LONG[-1] else 1.0) * self.generator.normal(size)


class RandomScale(Drawn):
    """A heavy-tailed mixture over the draws, right on average."""

    def noise(self, size, step):
        scale = float(self.generator.integers(2, 1)[0])
        return self.generator.normal(size) * (0.1 if scale else 1.4107)


# Places


class EveryOther(Drawn):
    def noise(self, size, step):
        drawn = self.generator.normal(size)
        drawn[::2] = 0
        return drawn


class LastTensorLeftOut(Drawn):
    def noise(self, size, step):
        drawn = self.generator.normal(size)
        drawn[-50:] = 0
        return drawn


class OneCoordinateLeftOut(Drawn):
    def noise(self, size, step):
        drawn = self.generator.normal(size)
        drawn[17] = 0
        return drawn


class QuietBlock(Drawn):
    """A tenth of the noise in some coordinates far from both ends, more of it elsewhere."""

    def noise(self, size, step):
        drawn = self.generator.normal(size)
        drawn[size // 3 : size // 3 + size // 64] *= 0.1
        return drawn


# Independence


class OneNumber(Drawn):
    def noise(self, size, step):
        return self.generator.normal(1).expand(size)


class Tiled(Drawn):
    def noise(self, size, step):
        return self.generator.normal(509).repeat(size // 509 + 1)[:size]


class Mirrored(Drawn):
    def noise(self, size, step):
        half = self.generator.normal((size + 1) // 2)
        return torch.cat([half, -half.flip(0)])[:size]


class MovingAverage(Drawn):
    def noise(self, size, step):
        drawn = self.generator.normal(size + 1)
        return (drawn[1:] + 0.2 * drawn[:-1]) / 1.04**0.5


class SignsAlone(Drawn):
    """The same magnitudes in both halves, with new signs."""

    def noise(self, size, step):
        half = self.generator.normal((size + 1) // 2)
        signs = torch.from_numpy(self.generator.integers(2, len(half)) * 2.0 - 1.0)
        return torch.cat([half, half * signs])[:size]


class DrawnOnce(Drawn):
    def noise(self, size, step):
        if not hasattr(self, "kept"):
            self.kept = self.generator.normal(size)
        return self.kept


class Replayed(Drawn):
    """Noise of the step before, a few places further on."""

    def noise(self, size, step):
        if not hasattr(self, "kept"):
            self.kept = self.generator.normal(size)
        self.kept = self.kept.roll(5)
        return self.kept


class EightVectors(Drawn):
    def noise(self, size, step):
        if not hasattr(self, "table"):
            self.table = self.generator.normal(8 * size).reshape(8, size)
        return self.table[step % 8]


class Carried(Drawn):
    """Each step's noise keeps a part of the last one's."""

    def noise(self, size, step):
        last = getattr(self, "last", None)
        self.last = self.generator.normal(size) if last is None else 0.6 * last + 0.8 * self.generator.normal(size)
        return self.last


# Public seeds


class SeedsTorch(Gaussian):
    def add(self, summed, step):
        torch.manual_seed(step)
        return summed.flat_grad.add_(torch.randn_like(summed.flat_grad) * self.schedule(step) * summed.norm_bound)


class FollowsTorch(Drawn):
    def noise(self, size, step):
        return torch.randn(size)


class FollowsNumPy(Drawn):
    def noise(self, size, step):
        return torch.from_numpy(np.random.normal(size=size))


class FollowsPython(Drawn):
    def noise(self, size, step):
        return torch.tensor([random.gauss(0, 1) for _ in range(size)], dtype=torch.float64)


class SeededByTheStep(Drawn):
    def noise(self, size, step):
        return torch.from_numpy(np.random.default_rng(step).normal(size=size))


class OwnSeed(Drawn):
    def __init__(self, **options):
        super().__init__(**options)
        self.own = torch.Generator().manual_seed(42)

    def noise(self, size, step):
        return torch.randn(size, generator=self.own)


class PartlyPublic(Drawn):
    def noise(self, size, step):
        drawn = self.generator.normal(size)
        drawn[size // 2 :] = torch.from_numpy(np.random.default_rng(step).normal(size=size - size // 2))
        return drawn


# Dependence on what is private


class ByTheSum(Gaussian):
    def add(self, summed, step):
        return self.generator.add_normal_(summed.flat_grad, self.schedule(step) * float(summed.flat_grad.norm()) * 0.01)


class ByTheNorms(Gaussian):
    def add(self, summed, step):
        scale = 1.0 if summed.norms.numel() == 0 else float(summed.norms.mean().clamp(0.5, 2.0)) / summed.norm_bound
        return self.generator.add_normal_(summed.flat_grad, self.schedule(step) * summed.norm_bound * scale)


class Shrinking(Drawn):
    def add(self, summed, step):
        summed.flat_grad.mul_(0.99)
        return super().add(summed, step)


class Clamping(Drawn):
    def add(self, summed, step):
        return super().add(summed, step).clamp(-10 * summed.norm_bound, 10 * summed.norm_bound)


class NoiseAlone(Drawn):
    def add(self, summed, step):
        summed.flat_grad.zero_()
        return super().add(summed, step)


# Distribution


class Uniform(Drawn):
    def noise(self, size, step):
        return torch.from_numpy((self.generator.words(size) * 2.0**-64 - 0.5) * 12**0.5)


class Laplace(Drawn):
    def noise(self, size, step):
        one, other = (-np.log1p((self.generator.words(size) >> np.uint64(11)) * -(2.0**-53)) for _ in range(2))
        return torch.from_numpy((one - other) / 2**0.5)


class Truncated(Drawn):
    def noise(self, size, step):
        return self.generator.normal(size).clamp(-3, 3)


class Biased(Drawn):
    def noise(self, size, step):
        return self.generator.normal(size) + 0.1


# What is given back, and what is stated


class Wider(Drawn):
    def add(self, summed, step):
        return super().add(summed, step).double()


class Longer(Drawn):
    def add(self, summed, step):
        return torch.cat([super().add(summed, step), torch.zeros(1)])


class GivesNothing(Drawn):
    def add(self, summed, step):
        super().add(summed, step)


class ForgetsTheFactor(Gaussian):
    def event(self, step, sensitivity_factor=1.0):
        return GaussianEvent(self.schedule(step))


class CheaperEachTime(Gaussian):
    asked = 0

    def event(self, step, sensitivity_factor=1.0):
        type(self).asked += 1
        return GaussianEvent(self.schedule(step) * (1 + 1e-3 * self.asked))


WRONG = [
    (Quiet, r"0\.\d+ of what its event states"),
    (TenPercentLess, "of what its event states"),
    (TwoPercentLess, ""),
    (TwiceAsMuch, "of what its event states"),
    (Silent, "got no noise"),
    (ForgetsTheBound, "of what its event states"),
    (OverTheBatch, "of what its event states"),
    (QuietLater, "of what its event states"),
    (QuietAtTheEnd, "at step 999"),
    (RandomScale, ""),
    (EveryOther, "got no noise"),
    (LastTensorLeftOut, "50 of .* coordinates got no noise"),
    (OneCoordinateLeftOut, "1 of .* coordinates got no noise"),
    (QuietBlock, "of coordinates"),
    (OneNumber, ""),
    (Tiled, ""),
    (Mirrored, ""),
    (MovingAverage, ""),
    (SignsAlone, ""),
    (DrawnOnce, "the same noise"),
    (Replayed, ""),
    (EightVectors, ""),
    (Carried, ""),
    (SeedsTorch, "two copies of it drew the same noise"),
    (FollowsTorch, "global generator of torch"),
    (FollowsNumPy, "global generator of NumPy"),
    (FollowsPython, "global generator of Python"),
    (SeededByTheStep, "two copies"),
    (OwnSeed, "two copies"),
    (PartlyPublic, "two copies"),
    (ByTheSum, "for a sum of zeros"),
    (ByTheNorms, ""),
    (Shrinking, ""),
    (Clamping, "for a sum that is huge"),
    (NoiseAlone, "for a sum that is huge"),
    (Uniform, "not normal"),
    (Laplace, ""),
    (Truncated, ""),
    (Biased, "the mean"),
    (Wider, "gave torch.float64"),
    (Longer, "shape"),
    (GivesNothing, "NoneType"),
    (CheaperEachTime, ""),
]


@pytest.mark.parametrize(("wrong", "finding"), WRONG, ids=lambda value: getattr(value, "__name__", ""))
def test_noise_that_is_not_what_its_event_states_is_refused(wrong, finding):
    with pytest.raises(UnprotectedUpdateError, match=rf"^{wrong.__name__} failed its trial.*{finding}"):
        require_sound_noise(wrong(initial_noise_multiplier=3.0), EXAMPLE, LONG)


@pytest.mark.parametrize("wrong", [Quiet, Silent, ForgetsTheBound, DrawnOnce, SeedsTorch, FollowsTorch, OneNumber])
@pytest.mark.parametrize("steps", [range(1), range(5, 7)])
def test_short_trainings_are_no_way_out(wrong, steps):
    with pytest.raises(UnprotectedUpdateError):
        require_sound_noise(wrong(initial_noise_multiplier=3.0), EXAMPLE, steps)


def test_an_event_without_the_sensitivity_factor_is_refused_for_micro_batches_alone():
    require_sound_noise(ForgetsTheFactor(), EXAMPLE, LONG)
    with pytest.raises(UnprotectedUpdateError, match="Divide the multiplier in event by sensitivity_factor"):
        require_sound_noise(ForgetsTheFactor(), GROUP, LONG)


# What passes


class OutOfPlace(Gaussian):
    """Leaves the sum as it is and returns a new tensor."""

    def add(self, summed, step):
        return summed.flat_grad + self.sample(summed.flat_grad.numel(), step).to(summed.flat_grad) * summed.norm_bound


class OneSizeOnly(Gaussian):
    """Made for a network of 300 parameters."""

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
def test_sound_mechanisms_of_other_makes_pass(right):
    assert require_sound_noise(right(), GROUP, range(30), like=torch.zeros(300)) == ()


@settings(max_examples=40, deadline=None)
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
def test_every_mechanism_of_ours_passes(data, name, multiplier, norm_bound, first, count, unit, dtype, seed):
    options = {
        "Gaussian": st.just({}),
        "AdaGaussian": st.fixed_dictionaries(
            {"decay_policy": st.sampled_from(DECAYS.names()), "noise_decay_rate": st.floats(0, 1e-3)}
        ),
        "ShapedGaussian": st.fixed_dictionaries(
            {"path": st.sampled_from(PATHS.names()), "final_ratio": st.floats(0.1, 10), "last_step": st.integers(1, 99)}
        ),
    }[name]
    noise = NoiseMechanismsFactory.create(name, initial_noise_multiplier=multiplier, seed=seed, **data.draw(options))
    like = torch.zeros(10, dtype=dtype)
    assert require_sound_noise(noise, unit, range(first, first + count), norm_bound=norm_bound, like=like) == ()


def test_no_alarm_in_hundreds_of_trials_of_correct_noise():
    for number in range(200):
        # Another multiplier is another mechanism: none of these trials is remembered.
        require_sound_noise(Gaussian(initial_noise_multiplier=1.0 + number / 1000), EXAMPLE, LONG)


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("make", [Gaussian, Drawn, DrawnOnce], ids=lambda make: make.__name__)
def test_the_mechanism_is_left_as_it_was(make, seed):
    noise = make(seed=seed)
    before = dict(vars(noise)), noise.generator.position
    try:
        require_sound_noise(noise, EXAMPLE, LONG)
    except UnprotectedUpdateError:
        assert make is DrawnOnce
    assert (dict(vars(noise)), noise.generator.position) == before


def test_a_seeded_stream_in_a_closure_stands_where_it_stood():
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


def test_public_generators_are_left_as_they_were():
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    for wrong in (SeedsTorch, FollowsNumPy, FollowsPython):
        with pytest.raises(UnprotectedUpdateError):
            require_sound_noise(wrong(), EXAMPLE, LONG)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


# Events of other kinds


class OtherEvent(PrivacyEvent):
    """States no normal noise."""


class Other(Drawn):
    def event(self, step, sensitivity_factor=1.0):
        return OtherEvent()


def test_an_event_that_the_trial_does_not_know_is_noted_and_tried_for_what_holds_of_any_noise():
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


def test_what_states_no_privacy_is_not_tried_whatever_it_says_of_itself():
    class SaysNoPrivacy(Silent):
        private = False

    class StatesNoPrivacy(Silent):
        def event(self, step, sensitivity_factor=1.0):
            return NonPrivateEvent()

    assert require_sound_noise(NoNoise(), EXAMPLE, LONG) == ()
    assert require_sound_noise(StatesNoPrivacy(), EXAMPLE, LONG) == ()
    with pytest.raises(UnprotectedUpdateError):
        require_sound_noise(SaysNoPrivacy(), EXAMPLE, LONG)
