"""Private sums of vectors."""

import math

import numpy as np
import pytest

from mechanisms import ClippedVectorSum, GaussianMechanism
from mechanisms.answers import REPRODUCIBLE, TRUE_SIZE, asked_ledgers
from monitors import GaussianEvent, Ledger

DRAWS = 6000


def a_sum(rows, bound=1.0):
    clipped = ClippedVectorSum(bound, len(rows))
    clipped.add(rows)
    return clipped


@pytest.mark.parametrize(("multiplier", "bound"), [(0.5, 3.0), (8.0, 0.01)])
def test_the_noise_is_normal_with_the_stated_deviation(multiplier, bound):
    from scipy.stats import chi2, kstest, norm

    noise = GaussianMechanism(multiplier).release(a_sum(np.zeros((1, DRAWS)), bound), Ledger())
    deviation = multiplier * bound
    assert kstest(noise, norm(scale=deviation).cdf).pvalue > 1e-9
    low, high = chi2(DRAWS).ppf([1e-9, 1 - 1e-9])
    assert low < (noise**2).sum() / deviation**2 < high


def test_an_answer_is_the_sum_plus_the_noise_and_lies_on_its_grid():
    rows = np.random.default_rng(0).normal(size=(50, 4))
    clipped, empty = a_sum(rows), a_sum(np.zeros((50, 4)))
    answer = GaussianMechanism(2.0, seed=5).release(clipped, Ledger())
    noise = GaussianMechanism(2.0, seed=5).release(empty, Ledger())
    assert np.allclose(answer - noise, clipped.total * clipped.grid, atol=1e-9)
    assert ((answer / clipped.grid) == np.rint(answer / clipped.grid)).all()


@pytest.mark.parametrize("multiplier", [1e-90, 1e-3, 1e30, 1e90])
def test_multipliers_far_from_one_do_not_overflow(multiplier):
    answer = GaussianMechanism(multiplier).release(a_sum([[0.5, 0.5]]), Ledger())
    assert np.isfinite(answer).all()
    assert (abs(answer - 0.5) < 10 * multiplier + 1e-9).all()


def test_the_cost_is_recorded_before_the_noise_is_drawn(monkeypatch):
    ledger, mechanism = Ledger(), GaussianMechanism(3.0)

    def fails(*_, **__):
        assert ledger.total == 1
        raise MemoryError

    monkeypatch.setattr(mechanism.generator, "normal", fails)
    with pytest.raises(MemoryError):
        mechanism.release(a_sum([[1.0]]), ledger)
    assert ledger.rows == ((GaussianEvent(3.0), 1),)
    assert any(known is ledger for known in asked_ledgers())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda ledger: GaussianMechanism(0.0), "noise_multiplier must be a positive"),
        (lambda ledger: GaussianMechanism(1e200), "noise_multiplier must lie between"),
        (lambda ledger: GaussianMechanism(math.nan), "noise_multiplier must be a positive"),
        (lambda ledger: GaussianMechanism(1.0).release(ClippedVectorSum(1.0, 2), ledger), "0 were added"),
        (lambda ledger: GaussianMechanism(1.0).release(a_sum([[1.0]]), []), "must be a monitors.Ledger"),
    ],
)
def test_invalid_releases_are_refused_and_cost_nothing(call, message):
    ledger = Ledger()
    with pytest.raises(ValueError, match=message):
        call(ledger)
    assert len(ledger) == 0


def test_secret_noise_never_repeats_and_a_seed_voids_the_guarantee():
    ledger = Ledger()
    first, second = (GaussianMechanism(1.0).release(a_sum([[0.0]]), ledger) for _ in range(2))
    assert first != second
    assert ledger.notes == (TRUE_SIZE,)
    GaussianMechanism(1.0, seed=3).release(a_sum([[0.0]]), ledger)
    assert REPRODUCIBLE in ledger.notes
