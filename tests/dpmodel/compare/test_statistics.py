import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dpmodel.compare.statistics import Summary, paired_difference, summarise, verdict

values = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12)


@given(values)
def test_the_interval_is_students(sample):
    found = summarise(sample)
    mean = sum(sample) / len(sample)
    assert found.mean == pytest.approx(mean, abs=1e-9)
    if max(sample) - min(sample) > 1e-3:
        assert found.deviation == pytest.approx(stats.tstd(sample), rel=1e-6)
        low, high = stats.t.interval(0.95, len(sample) - 1, loc=mean, scale=stats.sem(sample))
        assert (found.low, found.high) == pytest.approx((low, high), rel=1e-6, abs=1e-6)


def test_one_seed_has_a_mean_and_no_interval():
    assert summarise([0.9]) == Summary(1, 0.9, None, None, None)
    assert verdict(summarise([0.9])) == "too few seeds"


def test_no_values_are_refused():
    with pytest.raises(ValueError, match="at least one number"):
        summarise([])


@given(st.dictionaries(st.integers(0, 20), st.floats(-1, 1), min_size=2, max_size=8), st.floats(-10, 10))
def test_the_effect_of_a_seed_cancels_in_the_paired_difference(base, shift):
    moved = {seed: value + shift for seed, value in base.items()}
    found = paired_difference(moved, base)
    assert found.count == len(base)
    assert found.mean == pytest.approx(shift, abs=1e-9)
    assert found.deviation == pytest.approx(0, abs=1e-9)


def test_only_shared_seeds_are_paired():
    found = paired_difference({1: 0.9, 2: 0.8, 4: 0.1}, {1: 0.7, 2: 0.7, 3: 0.0})
    assert found.count == 2
    assert found.mean == pytest.approx(0.15)
    assert paired_difference({1: 0.9}, {2: 0.9}) is None


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.1, 0.2, "higher"),
        (-0.2, -0.1, "lower"),
        (-0.1, 0.1, "no difference shown"),
        (0.0, 0.1, "no difference shown"),
    ],
)
def test_a_difference_is_claimed_only_if_the_interval_excludes_zero(low, high, words):
    assert verdict(Summary(3, (low + high) / 2, 0.1, low, high)) == words


def test_the_interval_covers_the_mean_as_often_as_it_says():
    import random

    generator = random.Random(1)
    hits = 0
    for _ in range(2000):
        found = summarise([generator.gauss(0.0, 1.0) for _ in range(3)])
        hits += found.low <= 0.0 <= found.high
    assert math.isclose(hits / 2000, 0.95, abs_tol=0.02)


@given(st.lists(st.floats(0.0, 1.0), min_size=2, max_size=6), st.lists(st.floats(0.0, 1.0), min_size=6, max_size=6))
def test_intervals_of_an_accuracy_and_of_its_differences_stay_in_range(values, base):
    found = summarise(values, (0.0, 1.0))
    assert 0.0 <= found.low <= found.mean * (1 + 1e-12)
    assert found.mean * (1 - 1e-12) <= found.high <= 1.0
    difference = paired_difference(dict(enumerate(values)), dict(enumerate(base)), (0.0, 1.0))
    assert -1.0 <= difference.low <= difference.high <= 1.0
    plain = summarise(values)
    assert (found.mean, found.deviation) == (plain.mean, plain.deviation)
    assert found.low == max(plain.low, 0.0)


def test_limits_that_a_value_exceeds_are_ignored():
    assert summarise([0.5, 98.0], (0.0, 1.0)) == summarise([0.5, 98.0])
