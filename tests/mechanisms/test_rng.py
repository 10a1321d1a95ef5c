import copy
import math
import os
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mechanisms.rng import SecureGenerator, _threshold


@settings(max_examples=50, deadline=None)
@given(count=st.integers(0, 1000), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_normal_numbers_have_the_requested_length_and_type_and_are_finite(count, dtype):
    numbers = SecureGenerator().normal(count, dtype)
    assert numbers.shape == (count,)
    assert numbers.dtype == dtype
    assert torch.isfinite(numbers).all()


def test_normal_numbers_pass_a_goodness_of_fit_test_and_a_wrong_scale_fails_it():
    numbers = SecureGenerator(seed=3).normal(200_000).numpy()
    assert stats.kstest(numbers, "norm").pvalue > 1e-3
    assert stats.kstest(numbers * 1.02, "norm").pvalue < 1e-3


def test_normal_numbers_reach_the_tail_with_the_correct_frequency():
    numbers = SecureGenerator(seed=5).normal(4_000_000).numpy()
    beyond = int((np.abs(numbers) > 4.5).sum())
    expected = 4_000_000 * 2 * stats.norm.sf(4.5)
    assert abs(beyond - expected) < 5 * math.sqrt(expected)


def test_the_two_halves_of_a_draw_are_uncorrelated():
    numbers = SecureGenerator(seed=6).normal(200_000).numpy()
    halves = np.corrcoef(numbers[:100_000], numbers[100_000:])[0, 1]
    squares = np.corrcoef(numbers[:100_000] ** 2, numbers[100_000:] ** 2)[0, 1]
    assert abs(halves) < 5 / math.sqrt(100_000)
    assert abs(squares) < 5 / math.sqrt(100_000)


def test_secret_generators_never_repeat_and_seeded_ones_do():
    assert not np.array_equal(SecureGenerator().words(8), SecureGenerator().words(8))
    assert not np.array_equal(SecureGenerator(0).words(8), SecureGenerator(0).words(8))
    assert np.array_equal(SecureGenerator(11).words(8), SecureGenerator(11).words(8))
    assert not np.array_equal(SecureGenerator(11).words(8), SecureGenerator(12).words(8))
    assert not np.array_equal(SecureGenerator(11, "noise").words(8), SecureGenerator(11, "clip").words(8))


def test_two_secret_generators_follow_one_key_and_a_seeded_one_refuses():
    one, other, key = SecureGenerator(), SecureGenerator(), os.urandom(48)
    for generator in (one, other):
        generator.follow(key)
    assert one.words(9).tolist() == other.words(9).tolist()
    assert one.position is None
    assert copy.deepcopy(one).words(9).tolist() != one.words(9).tolist()
    with pytest.raises(ValueError, match="follows its seed"):
        SecureGenerator(seed=3).follow(key)
    with pytest.raises(ValueError, match="got 8"):
        one.follow(key[:8])


def test_successive_draws_of_one_generator_differ():
    generator = SecureGenerator(4)
    assert not np.array_equal(generator.words(16), generator.words(16))


@pytest.mark.parametrize("seed", [0, 9])
def test_a_forked_child_draws_a_different_stream(seed):
    generator = SecureGenerator(seed)
    generator.words(1)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, generator.words(4).tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = np.frombuffer(os.read(reader, 32), dtype=np.uint64)
    assert not np.array_equal(generator.words(4), theirs)


@settings(max_examples=30, deadline=None)
@given(rate=st.floats(1e-4, 1.0), seed=st.integers(1, 2**31))
def test_the_number_of_drawn_rows_is_binomial(rate, seed):
    count = 20_000
    drawn = len(SecureGenerator(seed).bernoulli_rows(count, rate))
    # Use exact tails: near rates of 0 and 1, the number of rows is far from normal.
    assert stats.binom.cdf(drawn, count, rate) > 1e-9
    assert stats.binom.sf(drawn - 1, count, rate) > 1e-9


@settings(max_examples=30, deadline=None)
@given(high=st.integers(1, 50), seed=st.integers(1, 2**31))
def test_integers_stay_in_range_and_are_uniform(high, seed):
    values = SecureGenerator(seed).integers(high, 5000)
    assert values.min() >= 0
    assert values.max() < high
    counts = np.bincount(values, minlength=high)
    assert stats.chisquare(counts).pvalue > 1e-7 if high > 1 else counts[0] == 5000


@given(count=st.integers(0, 300))
def test_a_permutation_holds_every_number_once(count):
    assert sorted(SecureGenerator().permutation(count).tolist()) == list(range(count))


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match=r"seed must be .* got -1"):
        SecureGenerator(-1)


def accepts(sample, scale):
    return stats.kstest(sample, stats.norm(scale=scale).cdf).pvalue > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-12, 0.3, 1.0, 1e12])
def test_normal_numbers_have_exactly_the_stated_scale(dtype, scale):
    numbers = SecureGenerator(seed=13).normal(100_000, dtype, scale).double().numpy()
    assert accepts(numbers, scale)
    assert not accepts(numbers, scale * 2 / 3)
    assert not accepts(numbers, scale * 3 / 2)
    assert not accepts(numbers + 0.02 * scale, scale)


def assert_tail_probabilities(numbers_of, count, thresholds):
    beyond = np.zeros((2, len(thresholds)))
    total = 0
    while total < count:
        part = numbers_of(1 << 22)
        total += len(part)
        beyond += [[np.count_nonzero(sign * part > level) for level in thresholds] for sign in (1, -1)]
    expected = total * stats.norm.sf(thresholds)
    assert (np.abs(beyond - expected) < 5 * np.sqrt(expected) + 3).all()


def test_float32_numbers_reach_the_tail_with_the_correct_frequency():
    generator = SecureGenerator(seed=15)
    assert_tail_probabilities(lambda size: generator.normal(size, torch.float32).numpy(), 1 << 23, [1, 2, 3, 4, 4.5, 5])


@pytest.mark.slow
def test_float32_numbers_reach_the_far_tail_with_the_correct_frequency():
    generator = SecureGenerator(seed=16)
    levels = [3, 3.5, 4, 4.5, 5, 5.5, 6]
    assert_tail_probabilities(lambda size: generator.normal(size, torch.float32).numpy(), 400_000_000, levels)


@pytest.mark.parametrize("lag", [1, 2, 32_768, 65_536, 1 << 18])
def test_float32_numbers_at_the_distance_of_pairs_blocks_and_stretches_are_uncorrelated(lag):
    numbers = SecureGenerator(seed=17).normal(1 << 20, torch.float32).double().numpy()
    first, second = numbers[:-lag], numbers[lag:]
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / math.sqrt(len(first))
    assert abs(np.corrcoef(first**2, second**2)[0, 1]) < 5 / math.sqrt(len(first))


def test_float32_draws_of_one_generator_differ_and_seeded_ones_repeat():
    first, second = SecureGenerator(4), SecureGenerator(4)
    one, two = first.normal(64, torch.float32), first.normal(64, torch.float32)
    assert not torch.isin(one, two).any()
    assert torch.equal(second.normal(64, torch.float32), one)
    assert torch.equal(second.normal(64, torch.float32), two)
    assert not torch.isin(
        SecureGenerator().normal(64, torch.float32), SecureGenerator().normal(64, torch.float32)
    ).any()


@given(seed=st.integers(1, 2**31))
def test_scalar_normal_equals_a_draw_of_one(seed):
    assert SecureGenerator(seed).scalar_normal() == pytest.approx(float(SecureGenerator(seed).normal(1)), rel=1e-12)


def test_adding_noise_in_place_adds_the_numbers_of_a_draw():
    drawn = SecureGenerator(6).normal(100_001, torch.float32, 0.5)
    target = torch.full((100_001,), 3.0)
    assert SecureGenerator(6).add_normal_(target, 0.5) is target
    assert torch.equal(target, 3.0 + drawn)


def test_a_child_forked_after_a_threaded_draw_draws_different_noise():
    generator = SecureGenerator(21)
    generator.normal(1 << 21, torch.float32)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, generator.normal(1 << 21, torch.float32)[-8:].numpy().tobytes())
        os._exit(0)
    theirs = np.frombuffer(os.read(reader, 32), dtype=np.float32)
    os.waitpid(child, 0)
    ours = generator.normal(1 << 21, torch.float32).numpy()
    assert len(theirs) == 8
    assert not np.isin(theirs, ours[-8:]).any()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_a_copied_secret_stream_is_fresh_and_a_copied_seeded_one_continues(copied):
    secret, seeded = SecureGenerator(purpose="noise"), SecureGenerator(seed=3, purpose="noise")
    secret.words(2), seeded.words(2)
    assert secret.words(4).tolist() != copied(secret).words(4).tolist()
    assert copied(seeded).words(4).tolist() == seeded.words(4).tolist()
    assert not copied(secret).reproducible


CPU = torch.device("cpu")


def on_device(generator, count):
    """Noise and coins from the generator's stream on a device; the CPU stands in for a GPU."""
    stream = generator.stream_on(CPU)
    return torch.cat([stream.add_normal_(torch.zeros(count)), stream.coins(count, 2**63).float()])


def test_streams_of_a_device_differ_by_secret_seed_and_purpose():
    makers = [SecureGenerator, SecureGenerator, *(lambda s=s, p=p: SecureGenerator(s, p) for s in (1, 2) for p in "ab")]
    drawn = torch.stack([on_device(make(), 40)[:40] for make in makers])
    assert len(torch.unique(drawn, dim=0)) == len(makers)
    assert torch.equal(on_device(SecureGenerator(1, "a"), 40)[:40], drawn[2])


def test_keys_of_two_devices_differ_under_one_seed():
    generator = SecureGenerator(5)
    assert generator._material("chacha:0")[:32] != generator._material("chacha:1")[:32]
    assert generator._material("chacha:0")[:32] != generator._material()[:32]


@pytest.mark.parametrize("seed", [0, 9])
def test_a_forked_child_draws_a_different_stream_on_devices(seed):
    generator = SecureGenerator(seed)
    on_device(generator, 10)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, on_device(generator, 10)[:10].numpy().tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = np.frombuffer(os.read(reader, 40), dtype=np.float32)
    assert len(theirs) == 10
    for ours in (on_device(generator, 10), on_device(SecureGenerator(seed), 10)):
        assert not np.array_equal(theirs, ours[:10].numpy())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_a_copied_device_stream_is_fresh_if_secret_and_continues_if_seeded(copied):
    secret, seeded = SecureGenerator(), SecureGenerator(seed=3)
    on_device(secret, 30), on_device(seeded, 30)
    assert not torch.equal(on_device(copied(secret), 30), on_device(secret, 30))
    assert torch.equal(on_device(copied(seeded), 30), on_device(seeded, 30))


OPERATIONS = st.lists(st.tuples(st.sampled_from(["words", "device", "normal"]), st.integers(0, 60)), max_size=6)


def operate(generator, operations):
    table = {
        "words": lambda size: torch.from_numpy(generator.words(size).astype(np.float64)),
        "device": lambda size: on_device(generator, size),
        "normal": lambda size: generator.normal(size, torch.float32),
    }
    return [table[kind](size) for kind, size in operations]


@settings(max_examples=40, deadline=None)
@given(before=OPERATIONS, after=OPERATIONS, drawn_elsewhere=st.booleans())
def test_a_position_restores_the_streams_of_cpu_and_devices(before, after, drawn_elsewhere):
    original, resumed = SecureGenerator(8), SecureGenerator(8)
    operate(original, before)
    if drawn_elsewhere:
        operate(resumed, [("device", 50), ("words", 3)])
    resumed.seek(original.position)
    assert resumed.position == original.position
    for one, other in zip(operate(original, after), operate(resumed, after), strict=True):
        assert torch.equal(one, other)
    assert resumed.position == original.position


def test_a_secret_stream_on_a_device_has_no_position():
    generator = SecureGenerator()
    on_device(generator, 5)
    assert generator.position is None
    with pytest.raises(ValueError, match="never repeated"):
        generator.seek(0)


@settings(max_examples=30, deadline=None)
@given(count=st.integers(0, 500), rate=st.floats(1e-4, 1.0), seed=st.integers(1, 2**31))
def test_bernoulli_mask_marks_the_rows_of_bernoulli_rows(count, rate, seed):
    mask = SecureGenerator(seed).bernoulli_mask(count, rate)
    assert (mask.dtype, mask.shape) == (torch.bool, (count,))
    assert np.array_equal(mask.nonzero()[:, 0].numpy(), SecureGenerator(seed).bernoulli_rows(count, rate))


@pytest.mark.parametrize("rate", [1e-12, 0.1, 1 / 3, 1 - 2.0**-53])
def test_the_threshold_of_a_coin_never_exceeds_its_probability(rate):
    threshold = _threshold(rate)
    assert 0 <= Fraction(rate) * 2**64 - threshold < 1


def test_a_tensor_scale_also_works_on_the_cpu():
    drawn = SecureGenerator(4).normal(50, torch.float32, 0.5)
    assert torch.equal(SecureGenerator(4).add_normal_(torch.zeros(50), torch.tensor(0.5)), drawn)
