import itertools
import math
from functools import partial

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mechanisms.box_muller import BoxMuller, add_normal
from mechanisms.rng import SecureGenerator, _open_stream

WORDS = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-1000, 1000),
    st.integers(0, 1000).map(lambda k: 2**63 - 1 - k),
    st.integers(0, 1000).map(lambda k: -(2**63) + k),
    st.integers(0, 62).map(lambda k: 2**k),
)
TURNS = st.one_of(st.integers(-(2**31), 2**31 - 1), st.integers(-4, 4).map(lambda k: max(-(2**31), k * 2**29 - k // 4)))


def transformed(words, turns, scale=1.0):
    cosines, sines = BoxMuller(len(words))(np.array(words, dtype=np.int64), np.array(turns, dtype=np.int32), scale)
    return cosines.astype(float), sines.astype(float)


def exact(word, turn, scale=1.0):
    with mpmath.workdps(40):
        uniform = abs(mpmath.mpf(word) + 0.5) / 2**63
        radius = scale * mpmath.sqrt(-2 * mpmath.log(uniform))
        angle = turn * mpmath.pi / 2**31
        return float(radius), float(radius * mpmath.cos(angle)), float(radius * mpmath.sin(angle))


class Recorder:
    """A stand-in for the cipher that returns zeros and records the requested bytes of the stream."""

    def __init__(self):
        self.taken = []

    def __call__(self, counter):
        return _Opened(self.taken, 16 * counter)


class _Opened:
    def __init__(self, taken, place):
        self.taken, self.place = taken, place

    def update_into(self, data, buffer):
        buffer[: len(data)] = data
        self.taken.append((self.place, self.place + len(data)))
        self.place += len(data)


@given(word=WORDS, turn=TURNS, scale=st.floats(1e-10, 1e15))
def test_the_transform_gives_the_numbers_of_exact_arithmetic(word, turn, scale):
    radius, cosine, sine = exact(word, turn, scale)
    ((found_cosine,), (found_sine,)) = transformed([word], [turn], scale)
    # A uniform number near 1 is rounded to 2**-53, which changes a radius near 0 by 1.5e-8.
    allowed = 1e-6 * radius + 3e-8 * scale
    assert abs(found_cosine - cosine) <= allowed
    assert abs(found_sine - sine) <= allowed


def test_the_smallest_words_give_the_farthest_numbers_and_the_largest_the_nearest():
    words = [0, -1, 1, 2**20, 2**63 - 1, -(2**63)]
    farthest, _ = transformed(words, [0] * len(words))
    assert farthest[:4] == pytest.approx([exact(word, 0)[0] for word in words[:4]], rel=1e-6)
    assert farthest[0] == farthest[1] > 9.4
    assert farthest[3] > 7.7
    assert farthest[4] == farthest[5] == 0.0


@pytest.mark.parametrize("deviations", [3.0, 5.0, 6.0, 7.0, 8.0, 8.5])
def test_the_share_of_words_beyond_a_radius_is_the_exact_probability(deviations):
    # The radius decreases with the word, so bisection over all 2**63 words finds the share.
    low, high = 0, 2**63 - 1
    while high - low > 1:
        middle = (low + high) // 2
        if transformed([middle], [0])[0][0] > deviations:
            low = middle
        else:
            high = middle
    assert low / 2**63 == pytest.approx(math.exp(-(deviations**2) / 2), rel=1e-4)


@pytest.mark.parametrize("word", [0, 2**40, 2**61, 2**62, -(2**62) * 7 // 4])
def test_over_all_angles_the_mean_is_zero_and_the_variance_at_least_the_stated_one(word):
    # Angles evenly spaced over a full turn, with sixteen different values of the bits that float32 rounds away.
    turns = (np.arange(-(2**17), 2**17)[:, None] * 2**14 + np.arange(511, 2**14, 2**10)).ravel()
    cosines, sines = transformed([word] * len(turns), turns)
    radius = exact(word, 0)[0]
    for part in (cosines, sines):
        assert radius**2 / 2 <= np.mean(part**2) <= radius**2 / 2 * (1 + 2e-6)
        assert abs(np.mean(part)) < 6e-8 * radius


@given(count=st.integers(0, 1 << 18) | st.integers(1 << 21, 5 << 19), threads=st.integers(1, 4))
def test_no_byte_of_the_stream_is_used_twice(count, threads):
    stream, target = Recorder(), np.zeros(count, dtype=np.float32)
    add_normal(target, 1.0, stream, threads)
    taken = sorted(stream.taken)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(taken))
    pairs = (count + 1) // 2
    assert sum(end - begin for begin, end in taken) == 12 * pairs
    # A stream of zeros gives the largest number as the first of each pair, and 0 as the second.
    assert np.count_nonzero(target > 9.4) == pairs


@pytest.mark.parametrize("count", [1, 2, 65_535, 65_537, 1 << 18, (1 << 22) + 4321])
def test_the_numbers_do_not_depend_on_the_number_of_threads(count):
    material = SecureGenerator(5).words(6).tobytes()
    drawn = []
    for threads in (1, 2, 3, 16):
        target = np.zeros(count, dtype=np.float32)
        add_normal(target, 1.0, partial(_open_stream, material), threads)
        drawn.append(target)
    assert all(np.array_equal(drawn[0], other) for other in drawn[1:])


def test_a_cipher_failure_in_any_thread_raises_an_error():
    def broken(counter):
        if counter:
            raise RuntimeError("no cipher")
        return Recorder()(counter)

    with pytest.raises(RuntimeError, match="no cipher"):
        add_normal(np.zeros(1 << 21, dtype=np.float32), 1.0, broken, threads=2)


def test_radius_and_angle_of_the_pairs_have_their_distributions_and_are_independent():
    words = SecureGenerator(8).words(400_000).view(np.int64)
    turns = SecureGenerator(9).words(200_000).view(np.int32)
    cosines, sines = transformed(words, turns)
    squares, angles = (cosines**2 + sines**2) / 2, np.arctan2(sines, cosines)
    assert stats.kstest(squares, "expon").pvalue > 1e-3
    assert stats.kstest(angles, stats.uniform(-math.pi, 2 * math.pi).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(squares, angles)[0, 1]) < 5 / math.sqrt(len(words))
    assert abs(np.corrcoef(cosines**2, sines**2)[0, 1]) < 5 / math.sqrt(len(words))
