from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechanisms import ClippedUnit, PoissonSampler
from mechanisms.correlated.samplers import ArrivalOrderSampler, CyclicPoissonSampler, FixedOrderSampler
from mechanisms.sampling_check import require_sound_sampler
from mechanisms.significance import unlikely_share
from monitors import GaussianEvent, PoissonSampledEvent
from monitors.errors import UnprotectedUpdateError
from monitors.events import CorrelatedEvent, DisjointEvent


def cyclic(examples=240, batch=12, bands=4, **options):
    sampler = CyclicPoissonSampler(examples, batch, **options)
    sampler.separate(bands)
    return sampler


def fixed(examples=240, batch=12, bands=4, **options):
    sampler = FixedOrderSampler(examples, batch, **options)
    sampler.separate(bands)
    return sampler


@pytest.mark.parametrize("make", [cyclic, fixed])
def test_steps_that_share_an_example_are_at_least_as_far_apart_as_the_bands(make):
    sampler, last = make(), defaultdict(lambda: -100)
    for step in range(200):
        for row in sampler.rows(step).tolist():
            assert step - last[row] >= 4
            last[row] = step


def test_each_row_joins_each_round_at_the_stated_rate_and_always_in_its_group():
    sampler, hits, places = cyclic(), np.zeros(240), defaultdict(set)
    for step in range(4 * 500):
        for row in sampler.rows(step):
            hits[row] += 1
            places[row].add(step % 4)
    assert sampler.group_rate == 0.2
    assert not unlikely_share(hits, 500, 0.2).any()
    assert not unlikely_share(hits.sum(), 240 * 500, 0.2)
    assert all(len(place) == 1 for place in places.values())


def test_groups_are_uniform_and_no_row_moves_another():
    groups = np.array([cyclic(seed=seed)._groups_of() for seed in range(1, 200)])
    assert not unlikely_share(np.bincount(groups.ravel(), minlength=4), groups.size, 0.25).any()
    # the group of a row does not depend on the number of rows
    for seed in (3, 4):
        assert np.array_equal(cyclic(examples=240, seed=seed)._groups_of(), cyclic(300, seed=seed)._groups_of()[:240])


def test_a_round_is_one_partition_of_poisson_samples_and_a_pass_one_of_all_data():
    event = GaussianEvent(1.5)
    assert cyclic(first_partition=3).amplify(9, event) == CorrelatedEvent(5, PoissonSampledEvent(0.2, event), 4)
    assert fixed(first_partition=3).amplify(20, event) == CorrelatedEvent(4, event, 4)
    assert cyclic(bands=20).amplify(0, event) == CorrelatedEvent(0, PoissonSampledEvent(1.0, event), 20)


def test_one_band_is_poisson_sampling_and_a_shuffle_with_one_order():
    one, other = cyclic(bands=1, seed=3), PoissonSampler(240, 12, seed=3)
    for step in range(5):
        assert np.array_equal(one.rows(step), other.rows(step))
        assert one.amplify(step, GaussianEvent(1.0)) == other.amplify(step, GaussianEvent(1.0))
    assert one.describe() == other.describe()
    assert fixed(bands=1).amplify(0, GaussianEvent(1.0)) == DisjointEvent(0, GaussianEvent(1.0))


def test_a_pass_takes_each_row_once_in_the_same_order():
    sampler = fixed(examples=50, batch=12, bands=4)
    passes = [[sampler.rows(4 * number + step).tolist() for step in range(4)] for number in range(3)]
    assert passes[0] == passes[1] == passes[2]
    assert len({row for rows in passes[0] for row in rows}) == 48
    assert not np.array_equal(fixed().rows(0), fixed().rows(0))


@pytest.mark.parametrize("make", [cyclic, fixed])
def test_a_resumed_training_keeps_groups_and_order(make):
    sampler, resumed = make(), make()
    before = [sampler.rows(step) for step in range(40)]
    resumed.load_state_dict(sampler.state_dict())
    for step in range(40):
        shared = set(resumed.rows(step).tolist()) & {
            int(row) for other in range(40) for row in before[other] if abs(other - step) % 20 and make is fixed
        }
        assert not shared
    if make is cyclic:
        assert np.array_equal(sampler._groups_of(), resumed._groups_of())


def test_a_round_is_not_continued_with_new_groups():
    sampler = cyclic()
    sampler.load_state_dict({"groups": None})
    with pytest.raises(ValueError, match="lies within a round of 4 steps"):
        sampler.rows(6)
    sampler.rows(8)
    sampler.rows(6)


@pytest.mark.parametrize(
    "groups", [np.zeros(239, dtype=np.int64), np.full(240, 4), np.full(240, -1), np.zeros(240), np.zeros((240, 1), int)]
)
def test_wrong_groups_in_a_state_are_refused(groups):
    with pytest.raises(ValueError, match="groups must"):
        cyclic().load_state_dict({"groups": groups})


@pytest.mark.parametrize("make", [cyclic, fixed])
@pytest.mark.parametrize("bands", [1, 2, 8])
def test_the_trial_before_training_accepts_them(make, bands):
    notes = require_sound_sampler(
        lambda examples, batch, first: make(examples, batch, bands, first_partition=first),
        2000,
        20,
        ClippedUnit(1, 20),
        50,
    )
    assert notes == ()


def test_the_trial_refuses_groups_that_change_and_rates_that_are_higher():
    class Moving(CyclicPoissonSampler):
        def rows(self, step):
            self._groups = self.generator.integers(self.bands, self.num_examples)
            return super().rows(step)

    class Greedy(CyclicPoissonSampler):
        def rows(self, step):
            self._groups_of()
            members = np.flatnonzero(self._groups == step % self.bands)
            return members[self.generator.bernoulli_rows(len(members), 1.2 * self.group_rate)]

    class Eager(FixedOrderSampler):
        def rows(self, step):
            return super().rows(step % 2)

    for kind, complaint in ((Moving, "again"), (Greedy, "states a share"), (Eager, "again|earlier step")):

        def make(examples, batch, first, kind=kind):
            sampler = kind(examples, batch, first_partition=first)
            sampler.separate(4)
            return sampler

        with pytest.raises(UnprotectedUpdateError, match=complaint):
            require_sound_sampler(make, 2000, 20, ClippedUnit(1, 20), 50)


def test_bands_that_do_not_fit_are_refused_with_the_most_that_do():
    with pytest.raises(ValueError, match="use at most bands=20"):
        cyclic(bands=21)
    with pytest.raises(ValueError, match="use at most bands=20"):
        fixed(bands=21)
    with pytest.raises(ValueError, match="cyclic_poisson"):
        PoissonSampler(240, 12).separate(2)
    sampler = cyclic()
    sampler.rows(0)
    with pytest.raises(ValueError, match="new sampler"):
        sampler.separate(5)


@pytest.mark.parametrize(("examples", "batch", "bands"), [(64, 16, 4), (8, 2, 4), (2, 1, 2)])
def test_the_trial_accepts_groups_of_the_size_of_a_batch(examples, batch, bands):
    def make(examples, batch, first_partition):
        return cyclic(examples, batch, bands, first_partition=first_partition)

    assert make(examples, batch, 0).group_rate == 1
    require_sound_sampler(make, examples, batch, ClippedUnit(1, batch), 12)


@settings(max_examples=40, deadline=None)
@given(examples=st.integers(1, 300), batch=st.integers(1, 60), first=st.integers(0, 3))
def test_the_order_of_arrival_costs_what_any_other_fixed_order_does(examples, batch, first):
    batch = min(batch, examples)
    arriving, ordered = (make(examples, batch, None, first) for make in (ArrivalOrderSampler, FixedOrderSampler))
    steps = arriving.steps_per_epoch
    for bands in {1, 2, steps} & set(range(1, steps + 1)):
        for sampler in (arriving, ordered):
            sampler.separate(bands)
        assert [arriving.amplify(step, GaussianEvent(1.3)) for step in range(steps)] == [
            ordered.amplify(step, GaussianEvent(1.3)) for step in range(steps)
        ]
    rows = np.concatenate([arriving.rows(step) for step in range(steps)])
    assert rows.tolist() == list(range(steps * batch))
    assert arriving.relation == ordered.relation


def test_the_order_of_arrival_neither_takes_nor_gives_an_order():
    arriving, ordered = ArrivalOrderSampler(40, 4), FixedOrderSampler(40, 4)
    ordered.rows(0)
    with pytest.raises(ValueError, match="no state"):
        arriving.load_state_dict(ordered.state_dict())
    with pytest.raises(KeyError):
        ordered.load_state_dict(arriving.state_dict())
    arriving.load_state_dict(arriving.state_dict())
    assert arriving.rows(1).tolist() == [4, 5, 6, 7]
    with pytest.raises(ValueError, match="bands=11 is more than the 10 steps"):
        arriving.separate(11)
