import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mechanisms.significance import ALARM, alike, repeated_at, unlikely_separation, unlikely_share, unlikely_spread


@given(count=st.integers(1, 10**6))
def test_a_spread_is_refused_only_beyond_the_exact_quantiles(count):
    low, high = stats.chi2.ppf(ALARM / 2, count), stats.chi2.isf(ALARM / 2, count)
    assert not unlikely_spread(np.array([low * 1.001, count, high * 0.999]), count).any()
    assert unlikely_spread(np.array([low * 0.999, high * 1.001]), count).all()


@given(trials=st.integers(1, 10**5), share=st.floats(0.001, 0.999), data=st.data())
def test_a_share_is_refused_only_where_the_binomial_tail_is_below_the_alarm(trials, share, data):
    hits = data.draw(st.integers(0, trials))
    tail = min(stats.binom.cdf(hits, trials, share), stats.binom.sf(hits - 1, trials, share))
    if unlikely_share(hits, trials, share):
        assert tail <= ALARM
    # Chernoff's bound is loose by a factor of about the square root of the number of trials.
    if tail < ALARM / (100 * trials):
        assert unlikely_share(hits, trials, share)


@pytest.mark.parametrize(
    ("share", "hits", "refused"), [(0.0, 0, False), (0.0, 1, True), (1.0, 9, True), (1.0, 10, False)]
)
def test_a_share_of_nothing_or_of_all_is_exact(share, hits, refused):
    assert unlikely_share(hits, 10, share) == refused
    assert not unlikely_share(0, 0, share)


@given(mu=st.floats(0.0, 60.0), place=st.floats(-3, 3), trials=st.integers(10, 200))
def test_a_gaussian_mechanism_at_its_own_distance_is_never_refused(mu, place, trials):
    first, second = (round(trials * stats.norm.cdf(place + move)) for move in (-mu / 2, mu / 2))
    assert not unlikely_separation(first, second, trials, mu)


@pytest.mark.parametrize("mu", [0.0, 1e-6, 0.5, 1.0])
def test_clearly_separated_outcomes_are_refused(mu):
    assert unlikely_separation(0, 64, 64, mu)
    assert not unlikely_separation(32, 33, 64, mu)
    assert not unlikely_separation(0, 64, 64, 10.0)


@pytest.mark.parametrize("size", [1, 5, 50, 1000])
def test_only_equal_vectors_are_alike(size):
    draws = np.random.default_rng(size).normal(size=(4, size))
    assert not alike(draws[0], draws[1:]).any()
    assert alike(draws[0], draws[[1, 0]]).tolist() == [False, True]
    assert not alike(np.zeros(size), draws[0])


@given(size=st.integers(1000, 5000), distance=st.integers(1, 400), seed=st.integers(0, 9))
def test_the_distance_of_a_repetition_is_found(size, distance, seed):
    draws = np.random.default_rng(seed).normal(size=size)
    assert repeated_at(draws) is None
    moved = np.sqrt(0.5) * (draws + np.roll(draws, distance))
    assert repeated_at(moved) == distance


def test_a_mirrored_vector_is_found():
    half = np.random.default_rng(0).normal(size=2000)
    assert repeated_at(np.concatenate([half, -half[::-1]])) is not None
