import copy
import os
import pickle

import numpy as np
import pytest
import torch
from scipy.linalg import toeplitz
from scipy.stats import chi2

from mechanisms import ClippedUnit, Gaussian, NoiseMechanismsFactory
from mechanisms.correlated.banded import MOST_BANDS, BandedMF
from mechanisms.correlated.workload import Workload
from mechanisms.engines.base import ClippedSum
from mechanisms.noise_check import require_sound_noise
from monitors import GaussianEvent
from monitors.errors import UnprotectedUpdateError

WORKLOAD = Workload.of_last_iterate(np.linspace(1, 0, 60, endpoint=False), momentum=0.9)


def prepared(bands, **options):
    return NoiseMechanismsFactory.create("BandedMF", bands=bands, **options).prepared(WORKLOAD)


def release(noise, step, size=50, bound=1.0, value=0.0):
    summed = ClippedSum(torch.full((size,), value), torch.zeros(0, 1), bound, bound)
    return noise.add(summed, step).double().numpy()


def drawn(noise, steps, size, bound=1.0):
    return np.stack([release(noise, step, size, bound) for step in range(steps)])


def test_one_band_is_gaussian_noise_bit_for_bit():
    one, other = prepared(1, seed=5, initial_noise_multiplier=1.3), Gaussian(seed=5, initial_noise_multiplier=1.3)
    for step in range(3):
        assert np.array_equal(release(one, step, bound=0.7, value=2.0), release(other, step, bound=0.7, value=2.0))
    assert one.event(0) == other.event(0)


@pytest.mark.parametrize("bands", [2, 3, 8])
def test_c_times_the_noise_is_white_with_exactly_the_stated_scale(bands):
    steps, size, sigma, bound = 20, 20_000, 1.7, 0.4
    noise = drawn(prepared(bands, initial_noise_multiplier=sigma), steps, size, bound)
    coefficients = prepared(bands).coefficients
    white = toeplitz(np.r_[coefficients, np.zeros(steps - bands)], np.zeros(steps)) @ noise / (sigma * bound)
    covariance = white @ white.T / size
    # each diagonal entry is chi-squared, two-sided; each other one is normal
    low, high = chi2.ppf([1e-7, 1 - 1e-7], size) / size
    assert (np.diag(covariance) > low).all()
    assert (np.diag(covariance) < high).all()
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 6 / np.sqrt(size)
    assert np.linalg.norm(coefficients) == pytest.approx(1.0)


def test_the_last_weights_contain_the_stated_share_of_noise():
    size, weights = 20_000, WORKLOAD.signal[::-1]
    stated = prepared(8).error(WORKLOAD) * np.linalg.norm(weights)
    found = np.std(weights @ drawn(prepared(8), 60, size))
    assert found == pytest.approx(stated, rel=0.03)
    assert prepared(8).error(WORKLOAD) < 0.5


@pytest.mark.sample(3)
@pytest.mark.parametrize("bands", [1, 2, 8])
def test_the_trial_before_training_accepts_it(bands):
    assert require_sound_noise(prepared(bands), ClippedUnit(1, 8), range(40)) == ()


def test_the_trial_refuses_noise_that_is_not_what_c_makes_white():
    class Weak(BandedMF):
        def add(self, summed, step):
            noisy = super().add(summed, step)
            return noisy.mul_(0.97)

    class Independent(BandedMF):
        def add(self, summed, step):
            return self.generator.add_normal_(summed.flat_grad, self.schedule(step) * summed.norm_bound)

    for kind in (Weak, Independent):
        with pytest.raises(UnprotectedUpdateError):
            require_sound_noise(kind(bands=4).prepared(WORKLOAD), ClippedUnit(1, 8), range(40))


def test_each_training_begins_without_the_noise_of_another():
    noise = NoiseMechanismsFactory.create("BandedMF", bands=4, seed=3)
    first = noise.prepared(WORKLOAD)
    drawn(first, 5, 10)
    second = first.prepared(WORKLOAD)
    assert second._recent is None
    assert first._recent is not None


def test_recent_noise_is_never_copied_or_pickled():
    noise = prepared(4)
    drawn(noise, 5, 10)
    for twin in (copy.deepcopy(noise), pickle.loads(pickle.dumps(noise))):
        assert twin._recent is None
        assert twin.coefficients.tolist() == noise.coefficients.tolist()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_not_continue_with_the_noise_of_its_parent():
    noise = prepared(4)
    drawn(noise, 5, 10)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        release(noise, 5, 10)
        os.write(write, bytes([noise._taken]))
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 1) == b"\x01"
    os.close(read)
    os.close(write)


def test_its_event_is_that_of_independent_noise():
    assert prepared(8, initial_noise_multiplier=1.5).event(7) == GaussianEvent(1.5)
    assert prepared(8).at(2.0).event(0) == GaussianEvent(2.0)
    assert prepared(8).at(2.0).bands == 8


def test_a_mechanism_that_is_not_prepared_draws_nothing():
    with pytest.raises(RuntimeError, match="call prepared"):
        release(NoiseMechanismsFactory.create("BandedMF", bands=4), 0)
    with pytest.raises(ValueError, match="chosen by a plan"):
        NoiseMechanismsFactory.create("BandedMF", bands="auto").prepared(WORKLOAD)


@pytest.mark.parametrize("bands", [0, -1, 1.5, MOST_BANDS + 1, "many", None, True])
def test_a_wrong_number_of_bands_is_refused(bands):
    with pytest.raises((ValueError, TypeError), match="bands"):
        NoiseMechanismsFactory.create("BandedMF", bands=bands)


def test_a_decay_is_refused():
    with pytest.raises(ValueError, match="no meaning for noise mechanism 'BandedMF'"):
        NoiseMechanismsFactory.create("BandedMF", bands=2, noise_decay_rate=0.1)


def test_steps_that_do_not_follow_each_other_share_no_noise():
    # two loops that draw from one mechanism in turn: an example may be in both of two consecutive draws
    for order in ([0, 0, 1, 1], [3, 3, 3], [5, 7, 9], [4, 3, 2]):
        noise, size = prepared(4), 20_000
        rows = [release(noise, step, size) for step in order]
        correlation = np.corrcoef(rows) - np.eye(len(rows))
        free = [at for at in range(1, len(rows)) if order[at] != order[at - 1] + 1]
        assert np.abs(correlation[free, [at - 1 for at in free]]).max() < 6 / np.sqrt(size)
    noise = prepared(4)
    assert abs(np.corrcoef([release(noise, 0, 20_000), release(noise, 1, 20_000)])[0, 1]) > 0.3


def test_a_sum_of_another_size_begins_without_earlier_noise():
    noise = prepared(4)
    release(noise, 0, 20_000)
    assert np.std(release(noise, 1, 30_000)) == pytest.approx(1 / prepared(4).coefficients[0], rel=0.03)


def test_a_change_of_the_bands_needs_new_coefficients():
    noise = prepared(8)
    with pytest.raises(RuntimeError, match="not prepared"):
        release(noise.with_bands(2), 0)
    noise.bands = 2
    with pytest.raises(RuntimeError, match="prepared for 8 bands"):
        release(noise, 0)


def test_one_band_draws_without_preparation():
    one, other = BandedMF(bands=1, seed=3), Gaussian(seed=3)
    assert torch.equal(one.sample(10, 0), other.sample(10, 0))


class Stretched(BandedMF):
    """Correct noise for a matrix C that is too large: an example moves the independent noise by more than 1."""

    def prepared(self, workload=None):
        own = super().prepared(workload)
        own.coefficients = 1.2 * own.coefficients
        return own


class Early(BandedMF):
    """States fewer bands than its noise has."""

    @property
    def _prepared_coefficients(self):
        return BandedMF(bands=4).prepared().coefficients


@pytest.mark.parametrize(("made", "found"), [(Stretched(bands=2), "norm 1.2"), (Early(bands=2), "outside of 2 bands")])
def test_the_trial_refuses_a_matrix_that_the_event_does_not_cover(made, found):
    with pytest.raises(UnprotectedUpdateError, match=found):
        require_sound_noise(made.prepared(), ClippedUnit(1, 10), range(40))


def test_correlated_noise_must_say_how_a_training_begins():
    class Shared(Gaussian):
        bands = 2

    with pytest.raises(NotImplementedError, match="override prepared"):
        Shared().prepared()
