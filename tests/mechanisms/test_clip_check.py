import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechanisms.adaptive_clipping import BOUND_UPDATES, QuantileClip
from mechanisms.clip_check import require_sound_clip
from mechanisms.clipping import CLIP, ClipMechanism, Fixed
from mechanisms.rng import SecureGenerator
from mechanisms.units import ClippedUnit
from monitors.errors import UnprotectedUpdateError
from monitors.events import GaussianEvent, PrivacyEvent

NAMES = ["first.weight", "first.bias", "second.weight"]


class Relative(Fixed):
    """Factors from the largest norm of the batch: each respects its bound, but all change when one example leaves."""

    def factors(self, norms):
        return (self.norm_bound / norms.max().clamp(min=self.norm_bound)).expand_as(norms)


class Peeking(Fixed):
    """Uses the exact largest norm, and states nothing."""

    def update(self, norms, unit, step):
        self._norm_bound = float(norms.max())


class Halving(Fixed):
    """A public schedule."""

    def update(self, norms, unit, step):
        self._norm_bound = self.norm_bound / 2


def started(mechanism) -> ClipMechanism:
    mechanism.start(0.3)
    return mechanism


@pytest.mark.parametrize("name", CLIP.names())
def test_every_built_in_mechanism_passes_and_is_unchanged(name):
    clip = started(CLIP.create(name))
    require_sound_clip(clip, NAMES, ClippedUnit(1, 8))
    assert clip.norm_bound == 0.3


def test_factors_that_depend_on_other_units_are_refused():
    with pytest.raises(UnprotectedUpdateError, match=r"Relative\.factors gives a unit a different factor"):
        require_sound_clip(started(Relative()), NAMES, ClippedUnit(1, 8))


def test_a_bound_learnt_without_an_event_is_refused_but_a_schedule_is_not():
    with pytest.raises(UnprotectedUpdateError, match=r"Peeking\.update uses the norms .* its event is None"):
        require_sound_clip(started(Peeking()), NAMES, ClippedUnit(1, 8))
    clip = started(Halving())
    require_sound_clip(clip, NAMES, ClippedUnit(1, 8))
    assert clip.norm_bound == 0.3


@pytest.mark.parametrize("clip", [Relative(), Peeking()])
def test_fit_refuses_them_before_anything_is_spent(make_model, loader, clip):
    model = make_model(clip_mech=clip)
    with pytest.raises(UnprotectedUpdateError):
        model.fit(loader, epochs=1)
    assert model.ledger.total == 0


def test_a_mechanism_without_an_event_never_sees_the_norms(make_model, loader):
    shown = []

    class Curious(Fixed):
        def update(self, norms, unit, step):
            shown.append(norms.numel())

    make_model(clip_mech=Curious()).fit(loader, epochs=1)
    assert shown == [0] * len(shown)
    assert len(shown) > 1


# Factors


class Negative(Fixed):
    def factors(self, norms):
        return -super().factors(norms)


class LargeBatch(Fixed):
    """Factors depend on the largest norm if there are more than 32 units."""

    def factors(self, norms):
        return super().factors(norms) if len(norms) <= 32 else Relative.factors(self, norms)


class ByTheRow(Fixed):
    """A schedule over the rows of a batch: the row of an example depends on the others."""

    def factors(self, norms):
        return super().factors(norms) / torch.arange(1, len(norms) + 1).unsqueeze(1)


class RunningMean(Fixed):
    def __init__(self):
        super().__init__()
        self.mean = 1.0

    def factors(self, norms):
        self.mean = 0.9999 * self.mean + 0.0001 * float(norms.mean())
        return super().factors(norms) * min(1.0, self.mean)


class CountsCalls(Fixed):
    calls = 0

    def factors(self, norms):
        self.calls += 1
        return super().factors(norms) * 0.999**self.calls


class LooseBlocks(Fixed):
    def block_bounds(self, blocks):
        return [3 * self.norm_bound] * blocks


class LeavesNoBound(Fixed):
    def update(self, norms, unit, step):
        self._norm_bound = 0.0


# Updates


class Spy(Fixed):
    """Keeps the norms of large batches in factors, and takes their median in update."""

    def factors(self, norms):
        if len(norms) > 6:
            self.seen = norms.clone()
        return super().factors(norms)

    def update(self, norms, unit, step):
        if hasattr(self, "seen"):
            self._norm_bound = float(self.seen.median())


class SpyOnBlocks(Fixed):
    """Moves the bounds of the blocks, but not the norm bound, by what it learns."""

    def factors(self, norms):
        self.share = float((norms < self.norm_bound).double().mean())
        return super().factors(norms)

    def update(self, norms, unit, step):
        self.scale = 0.5 + self.share / 2

    def block_bounds(self, blocks):
        return [bound * getattr(self, "scale", 1.0) for bound in super().block_bounds(blocks)]


class CheapMedian(Fixed):
    """The exact median, declared to be almost free."""

    def event(self, step, unit):
        return GaussianEvent(1e6)

    def update(self, norms, unit, step):
        if len(norms):
            self._norm_bound = float(norms.median())


class CheapMaximum(CheapMedian):
    def event(self, step, unit):
        return GaussianEvent(1.0)

    def update(self, norms, unit, step):
        self._norm_bound = float(norms.max())


class CheapMean(CheapMedian):
    """A noisy mean whose noise is ten times too small for its event."""

    def event(self, step, unit):
        return GaussianEvent(4.0)

    def update(self, norms, unit, step):
        total = float(norms.clamp(max=2 * self.norm_bound).sum()) + 0.8 * self.norm_bound * self.noise.scalar_normal()
        self._norm_bound = max(total / unit.expected_units, 1e-3)

    def __init__(self):
        super().__init__()
        self.noise = SecureGenerator()


class SpyBesideAnEvent(QuantileClip):
    """Adaptive clipping that charges its count, and moves the bound by the exact mean it saw in factors."""

    def factors(self, norms):
        self.seen = float(norms.mean()) if len(norms) > 6 else 0.0
        return super().factors(norms)

    def update(self, norms, unit, step):
        super().update(norms, unit, step)
        self._norm_bound *= 1 + self.seen


class QuietCount(QuantileClip):
    """Adaptive clipping with a tenth of the noise that its event states."""

    def event(self, step, unit):
        return GaussianEvent(10 * super().event(step, unit).noise_multiplier)


class EventFollowsTheBound(QuantileClip):
    def event(self, step, unit):
        return GaussianEvent(super().event(step, unit).noise_multiplier * self.norm_bound)


WRONG = [
    (Negative, "Negative failed its trial .* factors gave -"),
    (LargeBatch, r"LargeBatch\.factors gives a unit a different factor"),
    (ByTheRow, r"ByTheRow\.factors gives a unit a different factor"),
    (RunningMean, "RunningMean"),
    (CountsCalls, "CountsCalls"),
    (LooseBlocks, r"LooseBlocks\.block_bounds\(1\) returns 1 bounds"),
    (LeavesNoBound, "update left a norm bound of 0"),
    (Spy, r"Spy\.update uses the norms that factors received"),
    (SpyOnBlocks, r"SpyOnBlocks\.update uses the norms that factors received"),
    (CheapMedian, r"update reveals more about the norms than its event GaussianEvent\(noise_multiplier=1000000.0\)"),
    (CheapMaximum, "more about the norms than its event"),
    (CheapMean, "more about the norms than its event"),
    (SpyBesideAnEvent, "more about the norms than its event"),
    (QuietCount, "more about the norms than its event"),
    (EventFollowsTheBound, "failed its trial"),
]


@pytest.mark.parametrize(("wrong", "finding"), WRONG, ids=lambda value: getattr(value, "__name__", ""))
def test_mechanisms_that_reveal_more_than_stated_are_refused(wrong, finding):
    with pytest.raises(UnprotectedUpdateError, match=finding):
        require_sound_clip(started(wrong()), NAMES, ClippedUnit(1, 200), range(100))


def test_factors_that_remember_earlier_calls_are_refused():
    class Remembers(Fixed):
        """Changes after a batch of large norms only."""

        changed = False

        def factors(self, norms):
            self.changed |= bool((norms > 100 * self.norm_bound).all())
            return super().factors(norms) * (0.5 if self.changed else 1.0)

    with pytest.raises(UnprotectedUpdateError, match="depend on earlier batches"):
        require_sound_clip(started(Remembers()), NAMES, ClippedUnit(1, 8))


@settings(max_examples=15, deadline=None)
@given(
    name=st.sampled_from([name for name in CLIP.names() if CLIP.get(name).__module__.startswith("mechanisms.")]),
    norm_bound=st.floats(1e-4, 1e4),
    group_size=st.sampled_from([1, 4]),
    units=st.sampled_from([1, 2, 5, 64, 3000]),
    zeroed=st.booleans(),
    steps=st.integers(1, 1000),
    fraction_stddev=st.sampled_from([1e-4, 1e-3, 0.01, 0.1, 1.0, 100.0]),
    learning_rate=st.floats(1e-4, 5.0),
    policy=st.sampled_from(BOUND_UPDATES.names()),
    quantile=st.floats(0, 1),
    seed=st.integers(0, 2),
)
def test_every_built_in_mechanism_passes(
    name, norm_bound, group_size, units, zeroed, steps, fraction_stddev, learning_rate, policy, quantile, seed
):
    options = {
        "fraction_stddev": fraction_stddev,
        "learning_rate": learning_rate,
        "decay_policy": policy,
        "target_unclipped_quantile": quantile,
        "seed": seed,
    }
    clip = CLIP.create(name, **(options if name == "Gaussian" else {}))
    clip.start(norm_bound)
    unit = ClippedUnit(group_size, units)
    assert require_sound_clip(clip, NAMES, unit, range(steps), zeroed=zeroed and group_size == 1) == ()


@pytest.mark.slow
def test_hundreds_of_trials_of_adaptive_clipping_pass():
    for number in range(100):
        clip = QuantileClip(learning_rate=0.1 + number / 1000)
        clip.start(1.0)
        require_sound_clip(clip, NAMES, ClippedUnit(1, 100))


def test_a_seeded_mechanism_is_unchanged():
    clip = started(QuantileClip(seed=3))
    before = clip.state_dict(), clip.generator.position
    require_sound_clip(clip, NAMES, ClippedUnit(1, 100))
    assert (clip.state_dict(), clip.generator.position) == before


def test_untestable_updates_are_noted():
    class OtherEvent(PrivacyEvent):
        pass

    class Other(CheapMedian):
        def event(self, step, unit):
            return OtherEvent()

    class Jitter(Fixed):
        """A bound that moves at random, whatever the norms are."""

        def update(self, norms, unit, step):
            self._norm_bound *= 1 + 0.1 * SecureGenerator().scalar_normal() ** 2

    assert require_sound_clip(started(Other()), NAMES, ClippedUnit(1, 8)) == (
        "the update of Other was not tried: its event (OtherEvent) does not state normal noise",
    )
    assert require_sound_clip(started(Jitter()), NAMES, ClippedUnit(1, 8)) == (
        "the update of Jitter was not tried: it is random, and its event is None",
    )
