import numpy as np
import pytest

from dpmodel.features.morlet import coarser, low_pass, morlet_bank


@pytest.mark.parametrize(("size", "scales", "angles"), [(36, 2, 8), (48, 3, 6), (64, 4, 8)])
def test_the_bank_covers_all_frequencies_and_amplifies_none(size, scales, angles):
    bank, window = morlet_bank((size, size), scales, angles), low_pass(size, scales)
    energy = (bank**2).sum((0, 1))
    opposite = np.roll(energy[::-1, ::-1], 1, axis=(0, 1))
    whole = np.outer(window, window) ** 2 + (energy + opposite) / 2
    assert whole.max() < 1.04
    inner = np.abs(np.fft.fftfreq(size)) <= 0.375
    assert whole[np.ix_(inner, inner)].min() > 0.15


def test_wavelets_have_mean_zero_and_the_low_pass_keeps_means():
    assert np.abs(morlet_bank((40, 36), 2, 8)[..., 0, 0]).max() < 1e-12
    assert low_pass(40, 2)[0] == pytest.approx(1.0, abs=1e-12)


def test_each_wavelet_is_centred_at_its_frequency():
    size = 64
    bank = morlet_bank((size, size), 3, 8)
    for scale in range(3):
        for index, wavelet in enumerate(bank[scale]):
            row, column = np.unravel_index(wavelet.argmax(), wavelet.shape)
            found = 2 * np.pi * np.array([np.fft.fftfreq(size)[row], np.fft.fftfreq(size)[column]])
            angle = (3 - index) * np.pi / 8
            wanted = 0.75 * np.pi / 2**scale * np.array([np.cos(angle), np.sin(angle)])
            assert np.abs(found - wanted).max() < 0.12


def test_a_coarser_spectrum_filters_subsampled_signals_without_high_frequencies():
    size, step = 32, 2
    signal = np.cos(2 * np.pi * 3 * np.arange(size) / size) + np.sin(2 * np.pi * 5 * np.arange(size) / size)
    spectrum = low_pass(size, 2)
    whole = np.fft.ifft(np.fft.fft(signal) * spectrum).real[::step]
    half = np.fft.ifft(np.fft.fft(signal[::step]) * coarser(spectrum, step)).real
    assert np.allclose(whole, half)
    assert coarser(spectrum, 1) is spectrum
