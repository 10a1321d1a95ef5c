import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechanisms.sampling import SAMPLERS, PoissonSampler, ShuffleSampler
from mechanisms.units import ClippedUnit
from monitors.events import ComposedEvent, DisjointEvent, GaussianEvent, PoissonSampledEvent


@given(n=st.integers(1, 200), data=st.data(), name=st.sampled_from(SAMPLERS.names()))
def test_rows_are_distinct_and_in_range(n, data, name):
    batch_size = data.draw(st.integers(1, n))
    sampler = SAMPLERS.create(name, n, batch_size)
    for step in range(3):
        rows = sampler.rows(step)
        assert len(set(rows.tolist())) == len(rows)
        assert rows.dtype == np.int64
        assert all(0 <= row < n for row in rows)


def test_each_row_joins_poisson_batches_at_the_stated_rate_and_independently():
    sampler, steps = PoissonSampler(50, 5, seed=1), 4000
    drawn = np.zeros((steps, 50))
    for step in range(steps):
        drawn[step, sampler.rows(step)] = 1
    standard_error = math.sqrt(0.1 * 0.9 / steps)
    assert np.abs(drawn.mean(axis=0) - 0.1).max() < 5 * standard_error
    assert drawn.sum(axis=1).var() == pytest.approx(50 * 0.1 * 0.9, rel=0.15)
    assert abs(np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1]) < 5 / math.sqrt(steps)


def test_poisson_batches_may_be_empty():
    sampler = PoissonSampler(3, 1, seed=1)
    assert min(len(sampler.rows(step)) for step in range(100)) == 0


def test_a_shuffled_epoch_draws_each_row_at_most_once_and_epochs_differ():
    sampler = ShuffleSampler(23, 5, seed=1)
    epochs = [np.concatenate([sampler.rows(4 * epoch + step) for step in range(4)]) for epoch in range(2)]
    assert all(len(set(rows.tolist())) == 20 for rows in epochs)
    assert not np.array_equal(*epochs)


def test_an_earlier_shuffled_epoch_cannot_be_drawn_again():
    sampler = ShuffleSampler(10, 5)
    sampler.rows(2)
    with pytest.raises(ValueError, match="step 0 lies in epoch 0"):
        sampler.rows(0)


def test_releases_of_one_sample_are_composed_inside_the_sampling():
    event = PoissonSampler(100, 10).amplify(0, GaussianEvent(1.0), GaussianEvent(5.0))
    assert event == PoissonSampledEvent(0.1, ComposedEvent((GaussianEvent(1.0), GaussianEvent(5.0))))


def test_full_batches_claim_no_amplification():
    assert PoissonSampler(10, 10).amplify(0, GaussianEvent(1.0)) == GaussianEvent(1.0)
    assert PoissonSampler(10, 10).rows(0).tolist() == list(range(10))


def test_shuffled_steps_of_one_epoch_share_a_partition_and_epochs_do_not():
    sampler = ShuffleSampler(10, 5, first_partition=3)
    partitions = [sampler.amplify(step, GaussianEvent(1.0)).partition for step in range(4)]
    assert partitions == [3, 3, 4, 4]
    assert sampler.amplify(0, GaussianEvent(1.0)) == DisjointEvent(3, GaussianEvent(1.0))


@pytest.mark.parametrize("name", SAMPLERS.names())
def test_a_batch_larger_than_the_data_is_refused_with_both_numbers(name):
    with pytest.raises(ValueError, match="batch_size=11 is larger than the data set of 10 examples"):
        SAMPLERS.create(name, 10, 11)


@given(k=st.integers(1, 40), m=st.integers(1, 20))
def test_units_divide_the_batch(k, m):
    unit = ClippedUnit.of(k * m, k)
    assert unit == ClippedUnit(m, k)
    assert unit.sensitivity_factor == (1.0 if m == 1 else 2.0)


def test_micro_batches_that_do_not_divide_the_batch_are_refused_with_both_numbers():
    with pytest.raises(
        ValueError, match=r"batch_size=256 must be a multiple of micro_batches=30; use micro_batches=32"
    ):
        ClippedUnit.of(256, 30)


def test_the_group_of_an_example_does_not_depend_on_other_drawn_rows():
    sampler = PoissonSampler(1000, 100, seed=2)
    ids = np.stack([sampler.group_ids(2, 4) for _ in range(4000)])
    assert abs(np.corrcoef(ids[:, 0], ids[:, 1])[0, 1]) < 5 / math.sqrt(4000)
    assert np.bincount(ids[:, 0], minlength=4).min() > 850


@pytest.mark.parametrize("name", SAMPLERS.names())
def test_what_the_ledger_states_of_a_sampler_cannot_be_changed_later(name):
    sampler = SAMPLERS.create(name, 100, 10)
    for constant, value in {"batch_size": 5, "num_examples": 1_000}.items():
        with pytest.raises(AttributeError, match=f"{constant} of a {type(sampler).__name__} is fixed at 10"):
            setattr(sampler, constant, value)
    assert (sampler.batch_size, sampler.num_examples) == (10, 100)
