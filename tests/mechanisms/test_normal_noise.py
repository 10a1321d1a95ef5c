import pytest

from mechanisms.normal_noise import stated_multiplier
from monitors.events import ComposedEvent, GaussianEvent, NonPrivateEvent, PoissonSampledEvent, RepeatedEvent


@pytest.mark.parametrize(
    ("event", "multiplier"),
    [
        (GaussianEvent(2.0), 2.0),
        (RepeatedEvent(GaussianEvent(2.0), 4), 1.0),
        (ComposedEvent((GaussianEvent(2.0),) * 4), 1.0),
        (ComposedEvent((GaussianEvent(2.0), NonPrivateEvent())), None),
        (RepeatedEvent(NonPrivateEvent(), 2), None),
        (PoissonSampledEvent(0.5, GaussianEvent(2.0)), None),
        (NonPrivateEvent(), None),
    ],
)
def test_only_equivalents_of_one_gaussian_release_state_normal_noise(event, multiplier):
    assert stated_multiplier(event) == (None if multiplier is None else pytest.approx(multiplier))
