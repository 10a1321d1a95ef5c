import math
from dataclasses import replace
from statistics import fmean

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpmodel.planning.release import ReleasePlan
from mechanisms.adaptive_clipping import BOUND_UPDATES, QuantileClip
from mechanisms.noise import Gaussian
from mechanisms.sampling import SAMPLERS
from mechanisms.units import ClippedUnit
from monitors.events import GaussianEvent


def started(bound=1.0, **options):
    clip = QuantileClip(**options)
    clip.start(bound)
    return clip


@pytest.mark.parametrize(
    ("unit", "multiplier"),
    [(ClippedUnit(1, 256), 2 * 0.01 * 256), (ClippedUnit(8, 32), 0.01 * 32), (ClippedUnit(2, 32), 0.01 * 32)],
)
def test_the_count_is_charged_with_its_own_sensitivity(unit, multiplier):
    event = QuantileClip(fraction_stddev=0.01).event(0, unit)
    assert isinstance(event, GaussianEvent)
    assert event.noise_multiplier == pytest.approx(multiplier)


@pytest.mark.parametrize("unit", [ClippedUnit(1, 1000), ClippedUnit(4, 1000)])
def test_the_released_count_has_the_stated_noise(unit):
    fraction_stddev, learning_rate = 0.05, 1e-3
    clip = started(decay_policy="Linear", learning_rate=learning_rate, fraction_stddev=fraction_stddev, seed=3)
    moves = []
    for step in range(4000):
        before = clip.norm_bound
        clip.update(torch.full((unit.expected_units, 1), 0.5), unit, step)
        moves.append((before - clip.norm_bound) / learning_rate)
        clip.start(1.0)
    noise_std = math.sqrt(fmean((move - fmean(moves)) ** 2 for move in moves))
    stated = clip.event(0, unit).noise_multiplier * unit.indicator_sensitivity / unit.expected_units
    assert noise_std == pytest.approx(stated, rel=0.06)
    assert fmean(moves) == pytest.approx(1.0 - 0.9, abs=5 * stated / math.sqrt(4000))


@pytest.mark.parametrize("policy", BOUND_UPDATES.names())
@pytest.mark.parametrize("target", [0.2, 0.5, 0.9])
def test_the_bound_finds_the_quantile_of_the_norms(policy, target):
    clip = started(
        decay_policy=policy, learning_rate=0.05, target_unclipped_quantile=target, fraction_stddev=0.001, seed=1
    )
    norms = torch.linspace(0.0, 1.0, 501).unsqueeze(1)
    for step in range(600):
        clip.update(norms, ClippedUnit(1, 501), step)
    assert clip.norm_bound == pytest.approx(target, abs=0.06)


def test_a_median_target_on_vanishing_norms_stops_at_the_floor_with_a_message():
    clip = started(0.1, decay_policy="Geometric", learning_rate=0.5, target_unclipped_quantile=0.5, seed=1)
    for step in range(200):
        clip.update(torch.zeros(100, 1), ClippedUnit(1, 100), step)
    assert clip.norm_bound == pytest.approx(0.01)
    assert "min_norm_bound=0.01" in clip.at_limit


def test_the_bound_stops_at_its_ceiling():
    clip = started(1.0, learning_rate=5.0, max_norm_bound=2.0, seed=1)
    for step in range(50):
        clip.update(torch.full((100, 1), 1e9), ClippedUnit(1, 100), step)
    assert clip.norm_bound == 2.0
    assert "max_norm_bound=2" in clip.at_limit


@settings(max_examples=40, deadline=None)
@given(
    bound=st.floats(1e-3, 1e3),
    learning_rate=st.floats(1e-3, 100),
    target=st.floats(0, 1),
    policy=st.sampled_from(BOUND_UPDATES.names()),
    norms=st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), max_size=10),
)
def test_the_bound_stays_positive_and_in_its_range(bound, learning_rate, target, policy, norms):
    clip = started(bound, decay_policy=policy, learning_rate=learning_rate, target_unclipped_quantile=target)
    for step in range(3):
        clip.update(torch.tensor(norms).reshape(-1, 1), ClippedUnit(1, 5), step)
        assert bound / 10 <= clip.norm_bound <= bound * 10


def test_an_empty_batch_is_counted_with_noise():
    clip = started(learning_rate=0.1, seed=1)
    clip.update(torch.zeros(0, 1), ClippedUnit(1, 100), 0)
    assert clip.norm_bound != 1.0


def test_one_example_moves_the_noiseless_count_by_at_most_the_stated_sensitivity():
    for norm in (0.0, 5.0, math.nan):
        moved = []
        for rows in ([[0.3], [2.0]], [[0.3], [2.0], [norm]]):
            norms = torch.tensor(rows)
            moved.append(int((norms <= 1.0).sum()) - 0.5 * len(norms))
        assert abs(moved[0] - moved[1]) <= ClippedUnit(1, 3).indicator_sensitivity


def test_a_checkpoint_restores_the_bound():
    clip = started(learning_rate=0.1)
    clip.update(torch.zeros(10, 1), ClippedUnit(1, 10), 0)
    other = started()
    other.load_state_dict(clip.state_dict())
    assert other.norm_bound == clip.norm_bound


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_unclipped_quantile": 90}, r"in \[0, 1\], got 90 \(did you mean 0.9\?\)"),
        ({"fraction_stddev": 0.0}, "fraction_stddev must be a positive"),
        ({"learning_rate": -1}, "learning_rate must be a positive"),
        ({"decay_policy": "Geometrical"}, "did you mean 'Geometric'"),
    ],
)
def test_invalid_settings_are_refused_with_name_and_value(options, message):
    with pytest.raises(ValueError, match=message):
        QuantileClip(**options)


def test_an_initial_bound_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"norm_bound=5 must lie in \[min_norm_bound, max_norm_bound\] = \[1, 2\]"):
        started(5.0, min_norm_bound=1.0, max_norm_bound=2.0)


def test_a_zeroed_example_is_charged_for_the_term_it_can_flip():
    clip, unit = QuantileClip(fraction_stddev=0.02), ClippedUnit(1, 100)
    assert clip.event(0, unit) == GaussianEvent(4.0)
    plan = {
        name: ReleasePlan(Gaussian(), clip, unit, SAMPLERS.create(name, 100, 100)) for name in ("poisson", "shuffle")
    }
    assert plan["poisson"].event(0).events[1] == GaussianEvent(4.0)
    assert plan["shuffle"].event(0).event.events[1] == GaussianEvent(2.0)
    norms, zeroed = torch.tensor([0.5, 3.0, 2.0]), torch.tensor([0.5, 0.0, 2.0])
    counts = [int((values <= 1.0).sum()) - 0.5 * len(values) for values in (norms, zeroed)]
    assert abs(counts[0] - counts[1]) <= replace(unit, zeroed=True).indicator_sensitivity


def test_a_mechanism_started_again_takes_its_range_from_the_new_bound():
    clip = QuantileClip(max_norm_bound=20.0)
    clip.start(1.0)
    clip.start(0.05)
    assert (clip.min_norm_bound, clip.max_norm_bound) == (0.005, 20.0)


def test_a_count_that_is_drowned_in_noise_moves_the_bound_to_the_end_of_its_range():
    assert math.isfinite(BOUND_UPDATES.get("Geometric")(1.0, 5.0, -1e6))
    clip = started(1.0, decay_policy="Geometric", learning_rate=5.0, fraction_stddev=1e6)
    clip.update(torch.ones(1), ClippedUnit(1, 1), 0)
    assert clip.norm_bound in (clip.min_norm_bound, clip.max_norm_bound)


def test_a_restored_bound_keeps_the_range_of_the_initial_bound_and_must_lie_in_it():
    clip = QuantileClip()
    clip.start(1.0)
    low, high = clip.min_norm_bound, clip.max_norm_bound
    clip.load_state_dict({"norm_bound": 2.0})
    assert (clip.norm_bound, clip.min_norm_bound, clip.max_norm_bound) == (2.0, low, high)
    for bound in (high * 2, low / 2):
        with pytest.raises(ValueError, match="lies outside"):
            clip.load_state_dict({"norm_bound": bound})
    with pytest.raises(ValueError, match="positive finite"):
        clip.load_state_dict({"norm_bound": float("nan")})
