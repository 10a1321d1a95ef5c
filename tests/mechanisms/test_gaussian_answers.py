"""Noise on vectors of a grid: its scale, its grid, its secrecy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chi2, kstest, norm

from mechanisms.gaussian_answers import GaussianAnswers
from monitors import GaussianEvent

GRID = 2.0**-30


def test_the_noise_has_the_stated_scale():
    answers = GaussianAnswers(3.0, 0.5, seed=7)
    drawn = answers.noisy(np.zeros((200, 100), dtype=np.int64), GRID)
    spread = (drawn**2).sum() / answers.deviation**2
    low, high = chi2.ppf([1e-6, 1 - 1e-6], drawn.size)
    assert low < spread < high
    assert kstest(drawn.ravel() / answers.deviation, norm.cdf).pvalue > 1e-6
    assert answers.event == GaussianEvent(3.0)


def test_answers_lie_on_the_grid_and_keep_their_values():
    values = np.array([[0, 1, -5], [7, 2**20, 3]], dtype=np.int64)
    first = GaussianAnswers(2.0, 1.0, seed=3).noisy(values, GRID)
    zeros = GaussianAnswers(2.0, 1.0, seed=3).noisy(np.zeros_like(values), GRID)
    assert (first / GRID == np.rint(first / GRID)).all()
    assert ((first - zeros) / GRID == values).all()


def test_the_noise_is_secret_by_default():
    zeros = np.zeros(8, dtype=np.int64)
    found = {tuple(GaussianAnswers(1.0, 1.0).noisy(zeros, GRID)) for _ in range(5)}
    assert len(found) == 5
    assert not GaussianAnswers(1.0, 1.0).generator.reproducible


def test_noise_that_does_not_fit_the_grid_is_refused():
    with pytest.raises(ValueError, match="use a noise_multiplier below"):
        GaussianAnswers(1e12, 1.0).noisy(np.zeros(3, dtype=np.int64), 2.0**-40)


@pytest.mark.parametrize("values", [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0), (float("nan"), 1.0)])
def test_scales_must_be_positive(values):
    with pytest.raises(ValueError, match="positive"):
        GaussianAnswers(*values)
