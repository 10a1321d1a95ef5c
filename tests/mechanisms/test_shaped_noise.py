from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mechanisms.factory import NoiseMechanismsFactory
from mechanisms.shaped_noise import ShapedGaussian
from monitors import GaussianEvent
from monitors.schedules import PATHS, between

paths = st.sampled_from(PATHS.names())


@given(paths, st.floats(0.05, 50), st.floats(0.1, 10), st.integers(0, 500), st.integers(1, 500))
def test_a_shape_is_constant_outside_its_range_and_monotone_inside(path, first, ratio, start, length):
    schedule = between(first, first * ratio, path, start, start + length)
    values = [schedule(step) for step in range(start + length + 3)]
    assert values[: start + 1] == [first] * (start + 1)
    assert values[-3:] == pytest.approx([first * ratio] * 3)
    steps = [right - left for left, right in pairwise(values)]
    tiny = 1e-9 * first
    assert all(step <= tiny for step in steps) if ratio <= 1 else all(step >= -tiny for step in steps)


@given(paths, st.floats(0.1, 10), st.integers(0, 30), st.sampled_from([1.0, 2.0]))
def test_the_event_states_the_multiplier_of_the_step_over_the_sensitivity(path, ratio, step, factor):
    noise = ShapedGaussian(initial_noise_multiplier=1.3, last_step=20, final_ratio=ratio, path=path)
    assert noise.event(step, factor) == GaussianEvent(noise.noise_multiplier(step) / factor)


@pytest.mark.parametrize("step", [0, 10, 20, 50])
def test_the_noise_has_the_stated_scale(step):
    noise = ShapedGaussian(initial_noise_multiplier=1.5, last_step=20, final_ratio=0.4)
    sample, scale = noise.sample(20_000, step).numpy(), noise.noise_multiplier(step)

    def accepts(candidate):
        return stats.kstest(sample, stats.norm(scale=candidate).cdf).pvalue > 1e-4

    assert accepts(scale)
    assert not accepts(2 / 3 * scale)
    assert not accepts(3 / 2 * scale)


def test_the_factory_builds_it_and_refuses_unknown_arguments():
    made = NoiseMechanismsFactory.create("ShapedGaussian", initial_noise_multiplier=2.0, last_step=10, path="Cosine")
    assert made.noise_multiplier(5) == pytest.approx(1.5)
    with pytest.raises(ValueError, match="did you mean 'last_step'"):
        NoiseMechanismsFactory.create("ShapedGaussian", last_steps=10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"last_step": 10, "final_ratio": 0.0}, "final_ratio must be a positive finite number, got 0.0"),
        ({"last_step": 10, "first_step": 10}, "last_step must be above first_step, got 10 and 10"),
        ({"last_step": 10, "path": "Linnear"}, "did you mean 'Linear'"),
    ],
)
def test_invalid_shapes_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        ShapedGaussian(**options)
