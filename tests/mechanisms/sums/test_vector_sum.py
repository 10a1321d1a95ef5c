"""Sums of clipped vectors: their sensitivity, and that the order of the examples does not matter."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mechanisms import ClippedVectorSum

BOUND = 0.7


def summed(rows, bound=BOUND, chunk=1000):
    clipped = ClippedVectorSum(bound, len(rows))
    for start in range(0, len(rows), chunk):
        clipped.add(rows[start : start + chunk])
    return clipped


@given(arrays(np.float64, (6, 3), elements=st.floats(allow_nan=True, allow_infinity=True)), st.integers(0, 5))
def test_one_example_moves_the_sum_by_at_most_the_bound(rows, left_out):
    whole, part = ClippedVectorSum(BOUND, 6), ClippedVectorSum(BOUND, 6)
    whole.add(rows)
    part.add(np.delete(rows, left_out, axis=0))
    moved = (whole.total - part.total).tolist()
    assert sum(number**2 for number in moved) * whole.grid**2 <= BOUND**2


@pytest.mark.parametrize("bound", [1e-90, 1e-3, 0.7, 1.0, 2.0, 1e90])
@pytest.mark.parametrize("direction", [np.array([1.0, 0.0]), np.array([-3.0, 4.0]), np.full(1000, 1.0)])
def test_a_long_vector_moves_the_sum_by_the_bound(bound, direction):
    before = np.tile(direction, (4, 1)) * bound
    moved = (summed(before, bound).total - summed(before[:3], bound).total) * summed(before, bound).grid
    # both sums have the same grid, because it changes only beyond 2 million examples
    assert bound * (1 - 1e-8) < np.linalg.norm(moved) <= bound


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunks_and_order_change_no_bit(chunk):
    rows = np.random.default_rng(0).normal(size=(64, 5))
    assert (summed(rows, chunk=chunk).total == summed(rows).total).all()
    assert (summed(rows[::-1]).total == summed(rows).total).all()


def test_vectors_below_the_bound_are_added_as_they_are():
    rows = np.random.default_rng(0).uniform(-0.3, 0.3, size=(500, 4))
    clipped = summed(rows)
    assert np.allclose(clipped.total * clipped.grid, rows.sum(axis=0), atol=500 * clipped.grid)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e200])
def test_a_vector_that_is_not_finite_contributes_exactly_zero(value):
    rows = np.random.default_rng(0).normal(size=(9, 3))
    broken = np.insert(rows, 4, [0.1, value, 0.2], axis=0)
    clipped = ClippedVectorSum(BOUND, 9)
    clipped.add(rows)
    assert (summed(broken).total == clipped.total).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ClippedVectorSum(0.0, 3), "norm_bound must be a positive"),
        (lambda: ClippedVectorSum(1e200, 3), "norm_bound must lie between"),
        (lambda: ClippedVectorSum(1.0, 0), "num_examples must be"),
        (lambda: ClippedVectorSum(1.0, 2**62), r"num_examples must be below 2\*\*60"),
        (lambda: ClippedVectorSum(1.0, 3).add([1.0]), r"shape \(n, D\)"),
        (lambda: ClippedVectorSum(1.0, 3).add(np.zeros((4, 1))), "4 examples were added, but num_examples=3"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_chunks_of_different_lengths_are_refused():
    clipped = ClippedVectorSum(1.0, 3)
    clipped.add([[1.0, 2.0]])
    with pytest.raises(ValueError, match=r"shape \(n, 2\)"):
        clipped.add([[1.0]])


def test_many_examples_do_not_overflow():
    clipped = ClippedVectorSum(1.0, 2**50)
    clipped.add(np.ones((10, 1)))
    assert abs(int(clipped.total[0]) / 10 * 2**50) < 2**63
    assert clipped.total[0] * clipped.grid == pytest.approx(10, rel=1e-2)
