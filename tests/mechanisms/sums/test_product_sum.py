"""Sums of products of clipped vectors: their exact sensitivity, and that the order of the examples does not matter."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mechanisms import ClippedProductSum, GaussianMechanism
from monitors import GaussianEvent, Ledger

NUMBERS = st.floats(allow_nan=True, allow_infinity=True)


def summed(x, y, bounds=(0.7, 3.0), stated=None, chunk=1000):
    products = ClippedProductSum(*bounds, stated or len(x))
    for start in range(0, len(x), chunk):
        products.add(x[start : start + chunk], y[start : start + chunk])
    return products


def squared_move(one, other):
    """The squared distance of two totals in Python's integers."""
    return sum(number**2 for number in (one.total - other.total).tolist())


@given(arrays(np.float64, (5, 3), elements=NUMBERS), arrays(np.float64, (5, 2), elements=NUMBERS), st.integers(0, 4))
def test_one_example_moves_the_total_by_at_most_the_bound(x, y, left_out):
    whole = summed(x, y)
    part = summed(np.delete(x, left_out, axis=0), np.delete(y, left_out, axis=0), stated=5)
    assert squared_move(whole, part) <= whole.norm_bound**2


@pytest.mark.parametrize("size", [1, 2, 50])
@pytest.mark.parametrize("bounds", [(1e-90, 1e90), (0.7, 3.0), (1.0, 1.0)])
def test_a_long_example_reaches_the_bound(bounds, size):
    x, y = np.ones((4, size)) * 10 * bounds[0], np.ones((4, 2)) * 10 * bounds[1]
    whole, part = summed(x, y, bounds), summed(x[:3], y[:3], bounds, stated=4)
    moved = squared_move(whole, part) ** 0.5 / whole.norm_bound
    # x'x of a vector with one entry has no pairs, of weight 17 / sqrt(2) > 12
    assert (0.997 if size == 1 else 0.998) < moved <= 1.0


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunks_and_order_change_no_bit(chunk, monkeypatch):
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(64, 5)), generator.normal(size=(64, 2))
    total = summed(x, y).total
    assert (summed(x, y, chunk=chunk).total == total).all()
    assert (summed(x[::-1], y[::-1]).total == total).all()
    monkeypatch.setattr("mechanisms.sums.product_sum._AT_ONCE", 5)
    assert (summed(x, y).total == total).all()


def test_vectors_below_the_bounds_give_the_products():
    generator = np.random.default_rng(0)
    x, y = generator.uniform(-0.3, 0.3, size=(500, 4)), generator.uniform(-1, 1, size=(500, 2))
    products = summed(x, y)
    second, cross = products.unpacked(products.total)
    assert np.allclose(second, x.T @ x, atol=1e-4)
    assert np.allclose(cross, x.T @ y, atol=1e-3)
    assert (second == second.T).all()


def test_an_example_beyond_a_bound_is_scaled_to_it():
    products = summed(np.array([[3.0, 4.0]]), np.array([[0.0, 6.0]]), bounds=(1.0, 2.0))
    second, cross = products.unpacked(products.total)
    assert np.allclose(second, [[0.36, 0.48], [0.48, 0.64]], atol=1e-5)
    assert np.allclose(cross, [[0.0, 1.2], [0.0, 1.6]], atol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e200])
@pytest.mark.parametrize("in_targets", [False, True])
def test_an_example_that_is_not_finite_contributes_exactly_zero(value, in_targets):
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(9, 3)), generator.normal(size=(9, 2))
    (y if in_targets else x)[4, 1] = value
    others = np.arange(9) != 4
    assert (summed(x, y).total == summed(x[others], y[others], stated=9).total).all()


def test_the_largest_sums_do_not_overflow():
    for count in (2**12, 2**13 + 1, 2**17):
        x, y = np.ones((2, 1)), np.ones((2, 1))
        products = ClippedProductSum(1.0, 1.0, count)
        products.add(x, y)
        largest = max(products.total) * count  # if all examples were like these two, twice
        assert largest < 2**63
    with pytest.raises(ValueError, match=r"num_examples must be below 2\*\*40"):
        ClippedProductSum(1.0, 1.0, 2**41)


def test_the_noise_of_a_release_has_the_stated_deviation():
    size, multiplier = 80, 3.0
    products = summed(np.zeros((4, size)), np.zeros((4, 2)), bounds=(2.0, 5.0))
    ledger = Ledger()
    second, cross = products.unpacked(GaussianMechanism(multiplier).release(products, ledger))
    above = second[np.triu_indices(size, 1)]
    assert above.std() == pytest.approx(multiplier * products.pair_noise, rel=0.07)
    assert above.std() == pytest.approx(multiplier * 2.0**2, rel=0.07)  # nearly that of x x' alone
    assert np.diag(second).std() == pytest.approx(multiplier * products.pair_noise * 17 / 12, rel=0.4)
    assert cross.std() == pytest.approx(multiplier * 2.0 * 5.0 * 17 / 12, rel=0.3)
    assert ledger.rows == ((GaussianEvent(multiplier), 1),)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ClippedProductSum(0.0, 1.0, 3), "x_bound must be a positive"),
        (lambda: ClippedProductSum(1.0, 1e200, 3), "y_bound must lie between"),
        (lambda: ClippedProductSum(1.0, 1.0, 0), "num_examples must be"),
        (lambda: ClippedProductSum(1.0, 1.0, 3).add([1.0], [1.0]), r"shapes \(n, D\) and \(n, K\)"),
        (lambda: ClippedProductSum(1.0, 1.0, 3).add(np.zeros((2, 1)), np.zeros((1, 1))), r"shapes \(n, D\)"),
        (lambda: ClippedProductSum(1.0, 1.0, 3).add(np.zeros((4, 1)), np.zeros((4, 1))), "4 examples were added"),
        (lambda: summed(np.zeros((2, 3)), np.zeros((2, 1)), stated=4).add([[1.0]], [[1.0]]), "3 and 1 columns"),
        (lambda: ClippedProductSum(1.0, 1.0, 3).unpacked([1.0]), "total must have shape"),
        (lambda: GaussianMechanism(1.0).release(ClippedProductSum(1.0, 1.0, 3), Ledger()), "3 examples were stated"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
