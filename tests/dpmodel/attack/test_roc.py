"""Area and rates of an ROC curve against closed forms and an independent implementation; intervals hold."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dpmodel.attack import RocCurve


def normal_curve(distance, members, others, seed=0):
    draw = np.random.default_rng(seed)
    return RocCurve(draw.normal(distance, 1.0, members), draw.normal(0.0, 1.0, others))


SCORES = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=30).map(np.array)


@settings(deadline=None)
@given(SCORES, SCORES)
def test_the_area_is_the_statistic_of_mann_and_whitney(inside, outside):
    expected = stats.mannwhitneyu(inside, outside).statistic / (inside.size * outside.size)
    assert RocCurve(inside, outside).auc == pytest.approx(expected)


@pytest.mark.parametrize("distance", [0.0, 0.5, 2.0])
def test_normal_scores_give_the_known_area_and_rates(distance):
    curve = normal_curve(distance, 20000, 20000)
    low, high = curve.auc_interval(0.999)
    assert low < stats.norm.cdf(distance / np.sqrt(2)) < high
    assert high - low < 0.025
    for rate in (0.01, 0.001):
        false_positives, _ = curve.at(rate).certain_rates(0.999)
        known = stats.norm.sf(stats.norm.isf(rate) - distance)
        largest = stats.norm.sf(stats.norm.isf(false_positives) - distance)
        assert curve.at(rate).interval(0.999)[0] < largest
        assert curve.at(rate).true_positive_rate == pytest.approx(known, rel=0.25, abs=5e-4)


def test_intervals_contain_the_truth_as_often_as_they_say():
    area, held, crossed = stats.norm.cdf(1 / np.sqrt(2)), 0, 0
    for seed in range(400):
        curve = normal_curve(1.0, 60, 80, seed)
        low, high = curve.auc_interval(0.9)
        held += low <= area <= high
        point = curve.at(0.1)
        false_positives, true_positives = point.certain_rates(0.9)
        threshold = np.sort(curve.outside)[::-1][point.allowed]
        crossed += stats.norm.sf(threshold) > false_positives or stats.norm.sf(threshold - 1.0) < true_positives
    assert held >= 0.87 * 400
    assert crossed <= 0.13 * 400


def test_equal_scores_reach_nothing_at_a_small_rate():
    curve = RocCurve(np.ones(50), np.ones(2000))
    point = curve.at(0.001)
    assert (point.true_positive_rate, point.allowed, point.errors.false_positives) == (0.0, 2, 0)
    assert curve.auc == 0.5


@settings(deadline=None)
@given(SCORES, SCORES)
def test_the_drawn_curve_rises_from_few_false_positives_to_all(inside, outside):
    curve = RocCurve(inside, outside)
    false_positives, true_positives = curve.points()
    assert false_positives[0] == 0.0
    assert (false_positives[-1], true_positives[-1]) == (1.0, 1.0)
    assert (np.diff(false_positives) > 0).all()
    assert (np.diff(true_positives) >= 0).all()
    for rate, reached in zip(false_positives, true_positives, strict=True):
        allowed = round(rate * outside.size)
        kept = [t for t in (*outside, -np.inf) if (outside > t).sum() <= allowed]
        assert reached == max((inside > t).mean() for t in kept)


@pytest.mark.parametrize("scores", [np.array([]), np.array([1.0, np.nan]), np.array([np.inf]), np.ones((2, 2))])
def test_scores_that_order_nothing_are_refused(scores):
    with pytest.raises(ValueError, match="inside must be one finite score"):
        RocCurve(scores, np.ones(3))
