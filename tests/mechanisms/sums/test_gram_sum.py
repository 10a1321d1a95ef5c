"""Sums of clipped Gram matrices: their exact sensitivity, and that the order of the examples does not matter."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mechanisms import ClippedGramSum, GaussianMechanism
from monitors import GaussianEvent, Ledger

NUMBERS = st.floats(allow_nan=True, allow_infinity=True) | st.floats(-3, 3)


def summed(x, bound=2.5, stated=None, chunk=1000):
    grams = ClippedGramSum(bound, stated or len(x))
    for start in range(0, len(x), chunk):
        grams.add(x[start : start + chunk])
    return grams


def squared_move(one, other):
    """The squared distance of two totals in Python's integers."""
    return sum(number**2 for number in (one.total - other.total).tolist())


@given(arrays(np.float64, (4, 3, 2), elements=NUMBERS), st.integers(0, 3), st.booleans())
def test_one_example_moves_the_total_by_at_most_the_bound(x, left_out, wide):
    x = x.transpose(0, 2, 1) if wide else x
    whole, part = summed(x), summed(np.delete(x, left_out, axis=0), stated=4)
    assert squared_move(whole, part) <= whole.norm_bound**2


@pytest.mark.parametrize("bound", [1.1e-100, 2.5, 0.9e100])
@pytest.mark.parametrize("value", [5e-324, 1e-305, 1e-150, 1e-50, 1e50, 1e153, 1.3e154])
def test_tiny_and_huge_examples_stay_within_the_bound(value, bound):
    x = np.array([[[1.0, 0.5], [0.0, -1.0]], [[value, 0.0], [value / 2, -value]]])
    whole, part = summed(x, bound), summed(x[:1], bound, stated=2)
    assert squared_move(whole, part) <= whole.norm_bound**2
    expected = min(1.0, value * 1.1 * (value / bound))  # of 1 is the clipped example, roughly
    assert squared_move(whole, part) ** 0.5 / whole.norm_bound == pytest.approx(expected, rel=0.5, abs=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (1, 50), (50, 1), (64, 9), (9, 64)])
@pytest.mark.parametrize("bound", [1e-90, 0.7, 1e90])
def test_a_long_example_reaches_the_bound(bound, shape):
    x = np.random.default_rng(0).uniform(0.5, 1.0, size=(4, *shape)) * 10 * bound**0.5
    moved = squared_move(summed(x, bound), summed(x[:3], bound, stated=4)) ** 0.5 / summed(x, bound).norm_bound
    assert 0.99 < moved <= 1.0


@pytest.mark.parametrize("chunk", [1, 7, 64])
@pytest.mark.parametrize("bound", [0.3, 1e3])
def test_chunks_and_order_change_no_bit(chunk, bound, monkeypatch):
    x = np.random.default_rng(0).normal(size=(64, 12, 5))
    total = summed(x, bound).total
    assert (summed(x, bound, chunk=chunk).total == total).all()
    assert (summed(x[::-1, ::-1], bound).total == total).all()
    monkeypatch.setattr("mechanisms.sums.gram_sum._NUMBERS", 5 * 60)
    assert (summed(x, bound).total == total).all()


def test_examples_below_the_bound_give_their_gram_matrices():
    x = np.random.default_rng(0).normal(size=(500, 7, 4))
    grams = summed(x, bound=60.0)
    second = grams.unpacked(grams.total)
    assert np.allclose(second, np.einsum("nsi,nsj->ij", x, x), rtol=1e-3, atol=1e-3 * len(x))
    assert (second == second.T).all()


def test_an_example_beyond_the_bound_is_scaled_to_it():
    x = np.array([[[3.0, 4.0], [0.0, 0.0]]])  # its Gram matrix has the norm 25
    grams = summed(x, bound=5.0)
    assert np.allclose(grams.unpacked(grams.total), np.array([[9.0, 12.0], [12.0, 16.0]]) / 5, rtol=2e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e200])
def test_an_example_that_is_not_finite_contributes_exactly_zero(value):
    x = np.random.default_rng(0).normal(size=(9, 3, 2))
    x[4, 1, 0] = value
    others = np.arange(9) != 4
    assert (summed(x).total == summed(x[others], stated=9).total).all()


def test_rounding_up_to_a_longer_matrix_is_undone(monkeypatch):
    monkeypatch.setattr("mechanisms.sums.gram_sum._MARGIN", -0.5)  # as if rounding had moved the norm by half
    x = np.random.default_rng(0).normal(size=(2, 5, 3)) * 100
    assert squared_move(summed(x), summed(x[:1], stated=2)) <= summed(x).norm_bound ** 2


def test_the_largest_sums_do_not_overflow():
    for count in (2**12, 2**13 + 1, 2**17):
        grams = ClippedGramSum(1.0, count)
        grams.add(np.ones((2, 1, 1)))
        assert int(max(grams.total)) * count < 2**63  # if all examples were like these two, twice
    with pytest.raises(ValueError, match=r"num_examples must be below 2\*\*36"):
        ClippedGramSum(1.0, 2**37)


def test_the_noise_of_a_release_has_the_stated_deviation():
    size, multiplier = 80, 3.0
    grams = summed(np.zeros((4, 2, size)), bound=2.0)
    ledger = Ledger()
    second = grams.unpacked(GaussianMechanism(multiplier).release(grams, ledger))
    above = second[np.triu_indices(size, 1)]
    assert above.std() == pytest.approx(multiplier * grams.pair_noise, rel=0.07)
    assert above.std() == pytest.approx(multiplier * 2.0 / 2**0.5, rel=0.07)
    assert np.diag(second).std() == pytest.approx(multiplier * 2.0, rel=0.4)
    assert ledger.rows == ((GaussianEvent(multiplier), 1),)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ClippedGramSum(0.0, 3), "gram_bound must be a positive"),
        (lambda: ClippedGramSum(1e200, 3), "gram_bound must lie between"),
        (lambda: ClippedGramSum(1.0, 0), "num_examples must be"),
        (lambda: ClippedGramSum(1.0, 3).add([[1.0]]), r"shape \(n, S, D\)"),
        (lambda: summed(np.zeros((2, 1, 3)), stated=4).add(np.zeros((1, 1, 2))), r"shape \(n, S, 3\)"),
        (lambda: ClippedGramSum(1.0, 3).add(np.zeros((4, 1, 1))), "4 examples were added"),
        (lambda: ClippedGramSum(1.0, 3).unpacked([1.0]), "total must have shape"),
        (lambda: GaussianMechanism(1.0).release(ClippedGramSum(1.0, 3), Ledger()), "3 examples were stated"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
