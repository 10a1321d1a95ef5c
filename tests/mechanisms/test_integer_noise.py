"""Whole-number noise: its scale, and that its last bits are random however large it is."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest, kstest, norm

from mechanisms.integer_noise import normal_integers
from mechanisms.rng import SecureGenerator

#: Below 2**45, up to 13 further bits, and beyond 64 bits and one random word.
DEVIATIONS = (100.0, 2.0**44, 2.0**46, 3.7e17, 2.0**60, 2.0**70, 1.7e40, 2.0**200)


def drawn(deviation, count=4000, seed=5):
    return normal_integers(SecureGenerator(seed), count, deviation)


@pytest.mark.parametrize("deviation", DEVIATIONS)
def test_the_draws_are_normal_and_whole(deviation):
    found = drawn(deviation)
    assert found.shape == (4000,)
    assert all(int(value) == value for value in found)
    assert kstest(np.array([float(value) for value in found]) / deviation, norm.cdf).pvalue > 1e-6


@pytest.mark.parametrize("deviation", DEVIATIONS)
@pytest.mark.parametrize("bit", [0, 1, 5])
def test_the_last_bits_are_random(deviation, bit):
    ones = sum(int(value) >> bit & 1 for value in drawn(deviation))
    assert binomtest(ones, 4000).pvalue > 1e-6


@pytest.mark.parametrize("deviation", DEVIATIONS)
def test_draws_that_may_not_fit_are_python_integers(deviation):
    found = drawn(deviation, 10)
    assert found.dtype == (np.int64 if deviation < 2.0**58 else object)


def test_no_noise_is_zero():
    assert drawn(0.0).tolist() == [0] * 4000


def test_the_draws_are_secret_by_default():
    first, second = (normal_integers(SecureGenerator(), 4, 2.0**50).tolist() for _ in range(2))
    assert first != second
