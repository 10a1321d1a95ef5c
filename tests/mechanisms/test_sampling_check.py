import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechanisms import ClippedUnit, PoissonSampler, SecureGenerator, ShuffleSampler
from mechanisms.sampling_check import require_sound_sampler
from monitors.errors import UnprotectedUpdateError
from monitors.events import DisjointEvent, GaussianEvent, PoissonSampledEvent, PrivacyEvent, compose


def tried(kind, num_examples=500, batch_size=50, unit=None, steps=40):
    def make(examples, batch, partition):
        return kind(examples, batch, None, partition)

    return require_sound_sampler(make, num_examples, batch_size, unit or ClippedUnit(1, batch_size), steps)


class Liar(PoissonSampler):
    """Draws every row and states a rate of 0.01."""

    def rows(self, step):
        return np.arange(self.num_examples)

    def amplify(self, step, *events):
        return PoissonSampledEvent(0.01, compose(events))


class TenPercentMore(PoissonSampler):
    def rows(self, step):
        return self.generator.bernoulli_rows(self.num_examples, min(1.0, 1.1 * self.sampling_rate))


class FixedSize(PoissonSampler):
    def rows(self, step):
        return np.sort(self.generator.permutation(self.num_examples)[: self.batch_size])


class Twice(PoissonSampler):
    def rows(self, step):
        return np.repeat(super().rows(step), 2)


class SameBatch(PoissonSampler):
    """One Poisson sample for all steps."""

    def rows(self, step):
        if not hasattr(self, "kept"):
            self.kept = super().rows(step)
        return self.kept


class Couples(PoissonSampler):
    """Each row is drawn together with its neighbour."""

    def rows(self, step):
        even = self.generator.bernoulli_rows((self.num_examples + 1) // 2, self.sampling_rate) * 2
        both = np.concatenate([even, even + 1])
        return np.sort(both[both < self.num_examples])


class AllOrNothing(PoissonSampler):
    def rows(self, step):
        return np.arange(self.num_examples if len(self.generator.bernoulli_rows(1, self.sampling_rate)) else 0)


class FirstHalf(PoissonSampler):
    """The correct number of rows, but only from the first half of the data."""

    def rows(self, step):
        return self.generator.bernoulli_rows(self.num_examples // 2, min(1.0, 2 * self.sampling_rate))


class EachOncePerEpoch(PoissonSampler):
    """Disjoint batches of varying sizes in each epoch, stated as Poisson samples."""

    def rows(self, step):
        if step % self.steps_per_epoch == 0:
            self.where = self.generator.integers(self.steps_per_epoch, self.num_examples)
        return np.flatnonzero(self.where == step % self.steps_per_epoch)


class Seeded(PoissonSampler):
    def __init__(self, num_examples, batch_size, seed=None, first_partition=0):
        super().__init__(num_examples, batch_size, 42, first_partition)


class FollowsNumPy(PoissonSampler):
    def rows(self, step):
        return np.flatnonzero(np.random.random(self.num_examples) < self.sampling_rate)


class CountsFromTheEnd(PoissonSampler):
    def rows(self, step):
        return super().rows(step) - 1


class Fractions(PoissonSampler):
    def rows(self, step):
        return super().rows(step) * 1.0


class Raises(PoissonSampler):
    def rows(self, step):
        raise RuntimeError("no rows today")


class ForgetsTheCount(PoissonSampler):
    """Charges only the first release of a step."""

    def amplify(self, step, *events):
        return PoissonSampledEvent(self.sampling_rate, events[0])


class AnswersVary(PoissonSampler):
    def amplify(self, step, *events):
        return PoissonSampledEvent(float(self.generator.integers(8, 1)[0] + 1) / 16, compose(events))


class LaterMore(PoissonSampler):
    """The rate doubles later without being stated."""

    def rows(self, step):
        return self.generator.bernoulli_rows(self.num_examples, min(1.0, self.sampling_rate * (1 + (step >= 20))))


class ShuffledAnew(ShuffleSampler):
    """A new order at each step, stated as parts of one partition."""

    def rows(self, step):
        return self.generator.permutation(self.num_examples)[: self.batch_size]


class OnePartition(ShuffleSampler):
    def amplify(self, step, *events):
        return DisjointEvent(self.first_partition, compose(events))


class IgnoresTheFirst(ShuffleSampler):
    def amplify(self, step, *events):
        return DisjointEvent(step // self.steps_per_epoch, compose(events))


class PartsThatAdd(ShuffleSampler):
    zeroes = False


WRONG = [
    (Liar, "share of 0.01"),
    (TenPercentMore, "amplify states a share"),
    (FixedSize, "batches of a fixed size"),
    (Twice, "are repeated"),
    (SameBatch, ""),
    (Couples, ""),
    (AllOrNothing, ""),
    (FirstHalf, "drawn of rows"),
    (EachOncePerEpoch, ""),
    (Seeded, "seed is not secret"),
    (FollowsNumPy, "global generator of NumPy"),
    (CountsFromTheEnd, "negative indices count from the end"),
    (Fractions, "integer row indices"),
    (Raises, "no rows today"),
    (ForgetsTheCount, "costs less than they do"),
    (AnswersVary, "different events"),
    (LaterMore, "amplify states a share"),
    (ShuffledAnew, "rows of an earlier step of partition"),
    (OnePartition, "rows of an earlier step of partition"),
    (IgnoresTheFirst, "were reserved"),
    (PartsThatAdd, "but zeroes is False"),
]


@pytest.mark.parametrize(("wrong", "finding"), WRONG, ids=lambda value: getattr(value, "__name__", ""))
def test_rows_that_are_not_drawn_as_stated_are_refused(wrong, finding):
    with pytest.raises(UnprotectedUpdateError, match=rf"^{wrong.__name__} failed its trial.*({finding})"):
        tried(wrong)


class InTurns(PoissonSampler):
    def group_ids(self, count, groups):
        return np.arange(count) % groups


class OneGroup(PoissonSampler):
    def group_ids(self, count, groups):
        return np.zeros(count, dtype=np.int64)


class SortedGroups(PoissonSampler):
    def group_ids(self, count, groups):
        return np.sort(super().group_ids(count, groups))


class TooManyGroups(PoissonSampler):
    def group_ids(self, count, groups):
        return super().group_ids(count, groups + 1)


@pytest.mark.parametrize("wrong", [InTurns, OneGroup, SortedGroups, TooManyGroups])
def test_groups_that_are_not_independent_and_uniform_are_refused(wrong):
    assert tried(wrong) == ()
    with pytest.raises(UnprotectedUpdateError, match=rf"^{wrong.__name__} failed its trial.*group"):
        tried(wrong, unit=ClippedUnit(10, 5))


class WarmUp(PoissonSampler):
    """A growing rate that is stated."""

    def rate(self, step):
        return self.sampling_rate * min(1.0, (step + 1) / 20)

    def rows(self, step):
        return self.generator.bernoulli_rows(self.num_examples, self.rate(step))

    def amplify(self, step, *events):
        return PoissonSampledEvent(self.rate(step), compose(events))


class ClaimsNothing(FixedSize):
    def amplify(self, step, *events):
        return compose(events)


@pytest.mark.parametrize("right", [WarmUp, ClaimsNothing])
def test_sound_custom_samplers_pass(right):
    assert tried(right) == ()


def test_a_sampler_of_one_size_is_tried_only_on_the_real_size():
    class Sized(PoissonSampler):
        def __init__(self, num_examples, *options):
            if num_examples != 500:
                raise ValueError("made for 500 examples")
            super().__init__(num_examples, *options)

    assert tried(Sized) == ("sampler Sized was tried on a data set of the real size only",)


def test_an_unknown_event_is_noted():
    class OtherEvent(PrivacyEvent):
        pass

    class Other(PoissonSampler):
        def amplify(self, step, *events):
            return OtherEvent()

    assert tried(Other) == ("sampler Other was not tried: amplify states OtherEvent, which the trial does not know",)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from([PoissonSampler, ShuffleSampler]),
    num_examples=st.integers(1, 3000),
    share=st.floats(0, 1),
    steps=st.integers(1, 5000),
    groups=st.sampled_from([None, 1, 2, 64]),
)
def test_every_built_in_sampler_passes(kind, num_examples, share, steps, groups):
    batch = max(1, int(share * num_examples))
    unit = ClippedUnit(1, batch) if groups is None else ClippedUnit(2, groups)
    assert tried(kind, num_examples, batch, unit, steps) == ()


@pytest.mark.slow
def test_hundreds_of_trials_of_poisson_sampling_pass():
    for number in range(200):
        assert tried(PoissonSampler, 300 + number, 30) == ()


def test_the_trial_does_not_draw_from_the_sampler_of_the_run():
    made = []

    def make(*sizes):
        made.append(PoissonSampler(sizes[0], sizes[1], None, sizes[2]))
        return made[-1]

    ours = PoissonSampler(100, 10, seed=5)
    require_sound_sampler(make, 100, 10, ClippedUnit(1, 10), 7)
    assert ours.generator.position == 0
    assert all(sampler.generator.position is None for sampler in made)
    assert isinstance(made[0].generator, SecureGenerator)
    assert made[0].amplify(0, GaussianEvent(1.0)).sampling_rate == 0.1
