import pytest

from mechanisms.clip_check import require_sound_clip
from mechanisms.clipping import CLIP, ClipMechanism, Fixed
from mechanisms.units import ClippedUnit
from monitors.errors import UnprotectedUpdateError
from monitors.events import GaussianEvent

NAMES = ["first.weight", "first.bias", "second.weight"]


class Relative(Fixed):
    """Factors by the largest norm of the batch: each is below its bound, but all move when one example leaves."""

    def factors(self, norms):
        return (self.norm_bound / norms.max().clamp(min=self.norm_bound)).expand_as(norms)


class Peeking(Fixed):
    """Takes the largest norm as it is, and states nothing."""

    def update(self, norms, unit, step):
        self._norm_bound = float(norms.max())


class Halving(Fixed):
    """A public schedule."""

    def update(self, norms, unit, step):
        self._norm_bound = self.norm_bound / 2


class Stated(Peeking):
    def event(self, step, unit):
        return GaussianEvent(1.0)


def started(mechanism) -> ClipMechanism:
    mechanism.start(0.3)
    return mechanism


@pytest.mark.parametrize("name", CLIP.names())
def test_every_mechanism_of_ours_is_sound_and_left_as_it_was(name):
    clip = started(CLIP.create(name))
    require_sound_clip(clip, NAMES, ClippedUnit(1, 8))
    assert clip.norm_bound == 0.3


def test_factors_that_look_at_other_units_are_refused():
    with pytest.raises(UnprotectedUpdateError, match=r"Relative\.factors gives a unit another factor"):
        require_sound_clip(started(Relative()), NAMES, ClippedUnit(1, 8))


def test_a_bound_that_is_learnt_without_an_event_is_refused_and_a_schedule_is_not():
    with pytest.raises(UnprotectedUpdateError, match=r"Peeking\.update looks at the norms .* its event is None"):
        require_sound_clip(started(Peeking()), NAMES, ClippedUnit(1, 8))
    clip = started(Halving())
    require_sound_clip(clip, NAMES, ClippedUnit(1, 8))
    assert clip.norm_bound == 0.3
    require_sound_clip(started(Stated()), NAMES, ClippedUnit(1, 8))


@pytest.mark.parametrize("clip", [Relative(), Peeking()])
def test_fit_refuses_them_before_anything_is_spent(make_model, loader, clip):
    model = make_model(clip_mech=clip)
    with pytest.raises(UnprotectedUpdateError):
        model.fit(loader, epochs=1)
    assert model.ledger.total == 0


def test_a_mechanism_without_an_event_is_never_shown_a_norm(make_model, loader):
    shown = []

    class Curious(Fixed):
        def update(self, norms, unit, step):
            shown.append(norms.numel())

    make_model(clip_mech=Curious()).fit(loader, epochs=1)
    assert shown == [0] * len(shown)
    assert len(shown) > 1
