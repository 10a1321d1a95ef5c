"""Morlet wavelets and their Gaussian low-pass filter, as the real Fourier transforms of periodic filters."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

#: Width of the finest wavelet in pixels, and its frequency in radians per pixel; scale j has 2^j and 2^-j times that.
WIDTH = 0.8
FREQUENCY = 3.0 * np.pi / 4.0

#: Translates of a filter on each side that are summed to make it periodic; its envelope is negligible beyond.
_TRANSLATES = 2


def morlet_bank(shape: tuple[int, int], scales: int, angles: int) -> Array:
    """Fourier transforms of the wavelets, (scales, angles, height, width), real.

    A Morlet wavelet is an oriented Gaussian window times a plane wave, less the multiple of the window that makes its
    mean zero. Scale ``j`` is wider by ``2^j`` than the finest one; the angles divide half a turn, since the modulus of
    the response of a real image is the same at opposite angles.

    Args:
        shape: Height and width of the periodic grid.
        scales: Number of scales.
        angles: Number of angles per scale. More angles make the windows narrower across the wave.

    References:
        Bruna and Mallat 2013, "Invariant Scattering Convolution Networks", section 2.1.
    """
    bank = np.empty((scales, angles, *shape))
    first = int(angles - angles / 2 - 1)
    for scale in range(scales):
        width, frequency = WIDTH * 2.0**scale, FREQUENCY / 2.0**scale
        for index in range(angles):
            angle = (first - index) * np.pi / angles
            wave = _gabor(shape, width, angle, frequency, slant=4.0 / angles)
            window = _gabor(shape, width, angle, 0.0, slant=4.0 / angles)
            # The wavelet is the complex conjugate of its mirror image, so its transform is real.
            bank[scale, index] = np.fft.fft2(wave - wave.sum() / window.sum() * window).real
    return bank


def low_pass(size: int, scales: int) -> Array:
    """Fourier transform along one axis of the Gaussian that averages over ``2^scales`` pixels; it is separable."""
    positions = np.arange(size) + size * np.arange(-_TRANSLATES, _TRANSLATES + 1)[:, None]
    width = WIDTH * 2.0 ** (scales - 1)
    window = np.exp(-(positions**2) / (2.0 * width**2)).sum(0) / (np.sqrt(2.0 * np.pi) * width)
    return np.fft.fft(window).real


def coarser(spectrum: Array, step: int) -> Array:
    """The spectrum of a filter for a signal of which each axis keeps every ``step``-th sample: its low frequencies.

    Args:
        spectrum: Its last two axes, or its only one, hold the frequencies, zero first; their lengths are multiples of
            ``2 * step`` if ``step`` is above 1.
        step: 1 returns ``spectrum`` itself.
    """
    if step == 1:
        return spectrum
    for axis in range(max(-2, -spectrum.ndim), 0):
        size = spectrum.shape[axis]
        kept = size // step
        frequencies = np.r_[: kept // 2, size - kept // 2 : size]
        spectrum = spectrum.take(frequencies, axis=axis)
    return spectrum


def _gabor(shape: tuple[int, int], width: float, angle: float, frequency: float, slant: float) -> Array:
    """A Gaussian window times a plane wave along ``angle``, periodic; the window is wider by 1 / slant across."""
    copies = np.arange(-_TRANSLATES, _TRANSLATES + 1)
    rows, columns = ((np.arange(size) + size * copies[:, None]).ravel() for size in shape)
    x, y = rows[:, None], columns[None, :]
    along = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle)
    values = np.exp(-(along**2 + (slant * across) ** 2) / (2.0 * width**2) + 1j * frequency * along)
    periodic: Array = values.reshape(len(copies), shape[0], len(copies), shape[1]).sum((0, 2))
    periodic *= slant / (2.0 * np.pi * width**2)
    return periodic
