import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import toeplitz

from mechanisms.correlated.toeplitz import (
    _log_error_and_gradient,
    factorisation_error,
    optimal_coefficients,
    square_root_coefficients,
)
from mechanisms.correlated.workload import Workload


def matrix(coefficients, steps):
    column = np.zeros(steps)
    column[: min(len(coefficients), steps)] = coefficients[:steps]
    return toeplitz(column, np.zeros(steps))


def falling(steps):
    return Workload.of_last_iterate(np.linspace(1, 0, steps, endpoint=False), momentum=0.9)


def test_the_square_root_of_the_prefix_sum_matrix_has_these_coefficients():
    root = matrix(square_root_coefficients(20) / square_root_coefficients(20)[0], 20)
    assert root @ root == pytest.approx(np.tril(np.ones((20, 20))))


@settings(max_examples=40, deadline=None)
@given(bands=st.integers(1, 9), steps=st.integers(1, 40), decay=st.floats(0.0, 0.95), prefix=st.booleans())
def test_the_error_is_that_of_the_whole_matrices(bands, steps, decay, prefix):
    coefficients = decay ** np.arange(bands)
    coefficients /= np.linalg.norm(coefficients)
    inverse = np.linalg.inv(matrix(coefficients, steps))
    if prefix:
        sums = np.tril(np.ones((steps, steps)))
        expected = np.linalg.norm(sums @ inverse) / np.linalg.norm(sums)
        workload = Workload.of_prefix_sums(steps)
    else:
        workload = falling(steps)
        weights = workload.signal[::-1]
        expected = np.linalg.norm(weights @ inverse) / np.linalg.norm(weights)
    assert factorisation_error(coefficients, workload) == pytest.approx(expected)


@pytest.mark.parametrize("steps", [117, 1170])
def test_optimal_coefficients_have_norm_one_and_the_errors_of_an_independent_optimiser(steps):
    # L-BFGS with numerical gradients on the explicit recursion, from two random starts
    golden = {117: {2: 0.7120, 4: 0.5103, 8: 0.3706, 16: 0.2758}, 1170: {2: 0.7076, 4: 0.5010, 8: 0.3552, 16: 0.2524}}
    before = 1.0
    for bands, expected in golden[steps].items():
        found = optimal_coefficients(bands, falling(steps))
        error = factorisation_error(found, falling(steps))
        assert np.linalg.norm(found) == pytest.approx(1.0, abs=1e-12)
        assert found.min() >= 0
        assert error == pytest.approx(expected, rel=2e-3)
        assert error < factorisation_error(square_root_coefficients(bands), falling(steps))
        assert error < before
        before = error


@pytest.mark.parametrize(
    ("steps", "last_iterate", "expected"),
    [
        (64, False, {2: 0.73704, 4: 0.56844, 8: 0.46729, 16: 0.41223}),
        (64, True, {2: 0.72588, 4: 0.54378, 8: 0.42804, 16: 0.35844}),
        (1000, False, {2: 0.71162, 4: 0.51095, 8: 0.37331, 16: 0.28063}),
        (1000, True, {2: 0.70992, 4: 0.50688, 8: 0.36612, 16: 0.26985}),
    ],
)
def test_the_errors_are_those_of_jax_privacy(steps, last_iterate, expected):
    # optimize_banded_toeplitz of jax_privacy 2.0.0 in 64 bits, max_optimizer_steps=1000, reduction_fn jnp.mean or
    # lambda v: v[-1]; the square root of the reduced per_query_error over that of one band
    workload = Workload.of_last_iterate([1.0] * steps) if last_iterate else Workload.of_prefix_sums(steps)
    found = {bands: factorisation_error(optimal_coefficients(bands, workload), workload) for bands in expected}
    assert found == pytest.approx(expected, abs=2e-5)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.0, 0.9), min_size=1, max_size=6), st.integers(8, 50), st.booleans())
def test_the_gradient_is_that_of_the_error(tail, steps, prefix):
    workload = Workload.of_prefix_sums(steps) if prefix else falling(steps)
    tail = np.array(tail)
    _, gradient = _log_error_and_gradient(tail, workload)
    for index in range(len(tail)):
        shift = 1e-6 * np.eye(len(tail))[index]
        up, down = (_log_error_and_gradient(tail + sign * shift, workload)[0] for sign in (1, -1))
        assert gradient[index] == pytest.approx((up - down) / 2e-6, rel=1e-3, abs=1e-5)


def test_one_band_is_independent_noise():
    assert optimal_coefficients(1, falling(50)).tolist() == [1.0]
    assert factorisation_error(np.ones(1), falling(50)) == 1.0


def test_many_bands_and_few_steps_are_finite():
    for bands, steps in ((64, 3), (2, 1), (256, 500)):
        error = factorisation_error(optimal_coefficients(bands, falling(steps)), falling(steps))
        assert math.isfinite(error)
        assert 0 < error <= 1 + 1e-12
