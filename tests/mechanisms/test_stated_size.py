"""A public number of examples in place of the true one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechanisms.sampling import SAMPLERS, PoissonSampler
from monitors.events import GaussianEvent, PoissonSampledEvent


def stated(rows, batch, public, seed=None):
    sampler = PoissonSampler(rows, batch, seed)
    sampler.rely_on(public)
    return sampler


@given(st.integers(20, 400), st.integers(20, 400))
def test_nothing_that_is_stated_or_released_depends_on_the_true_number(one, other):
    samplers = [stated(rows, 10, 200) for rows in (one, other)]
    facts = [
        (each.sampling_rate, each.steps_per_epoch, each.describe(), each.amplify(0, GaussianEvent(1.0)))
        for each in samplers
    ]
    assert facts[0] == facts[1]
    assert facts[0][3] == PoissonSampledEvent(10 / 200, GaussianEvent(1.0))


def test_each_row_is_drawn_at_the_stated_rate():
    sampler = stated(150, 10, 200, seed=5)
    drawn = np.zeros(150)
    for step in range(4000):
        drawn[sampler.rows(step)] += 1
    rate, deviation = 10 / 200, np.sqrt(0.05 * 0.95 / 4000)
    assert abs(drawn.mean() / 4000 - rate) < 5 * deviation / np.sqrt(150)
    assert np.abs(drawn / 4000 - rate).max() < 5 * deviation


def test_a_row_more_or_less_changes_no_other_row():
    # The coins of the other rows are the same for neighbours, because the rate is.
    one, other = stated(100, 10, 200), stated(101, 10, 200)
    assert one.sampling_rate == other.sampling_rate
    assert PoissonSampler(100, 10).sampling_rate != PoissonSampler(101, 10).sampling_rate


def test_the_memory_is_planned_for_the_rows_that_are_there():
    assert stated(390, 10, 200).capacity > PoissonSampler(200, 10).capacity
    assert stated(20, 10, 200).capacity <= 20


@pytest.mark.parametrize("name", [name for name in SAMPLERS.names() if name != "poisson"])
def test_sampling_whose_cost_depends_on_the_true_number_refuses(name):
    with pytest.raises(ValueError, match=f"num_examples_public=200 does not go together with sampling='{name}'"):
        SAMPLERS.create(name, 100, 10).rely_on(200)


@pytest.mark.parametrize(
    ("public", "words"),
    [(9, "smaller than batch_size=10"), (49, "less than half"), (0, "num_examples_public"), (2.5, "num_examples_publ")],
)
def test_a_senseless_number_is_refused(public, words):
    sampler = PoissonSampler(100, 10)
    with pytest.raises(ValueError, match=words):
        sampler.rely_on(public)
    assert sampler.num_examples_public is None
