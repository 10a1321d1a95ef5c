"""The scattering transform of images: two layers of wavelets and modulus, then local averages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpmodel.features.morlet import coarser, low_pass, morlet_bank
from monitors import checks

#: Numbers in the largest intermediate result on a CPU, so that it stays in the cache of one core; and on other devices.
_IN_CACHE = 2**19
_ON_DEVICE = 2**26


class Scattering2D(nn.Module):
    """Scattering coefficients of order 0, 1 and 2 of each channel: fixed features that need no training.

    Order 0 is the image averaged over ``2^J`` pixels; order 1 averages ``|x * psi_1|`` and order 2
    ``||x * psi_1| * psi_2|`` in the same way, for Morlet wavelets ``psi`` at ``J`` scales and ``L`` angles, ``psi_2``
    coarser than ``psi_1``. The averages are kept every ``2^J`` pixels. The image is continued by reflection at its
    border.

    The filters are public constants: the module has no parameters and an empty ``state_dict``, and transforms each
    image by itself. Conventions (order of the channels, borders, sampling) are those of kymatio 0.3.

    Args:
        J: Number of scales, at least 1.
        shape: Height and width of the images, each above ``2^J``.
        L: Number of angles, at least 1.

    Attributes:
        channels: Features per input channel and place: ``1 + J L + L^2 J (J - 1) / 2``.
        output_shape: Height and width of the output, those of ``shape`` divided by ``2^J`` and rounded down.

    Shapes:
        x (..., height, width), float32 or float64 -> (..., channels, height // 2^J, width // 2^J). An image of shape
        (B, C, H, W) thus gives (B, C, channels, h, w), as with kymatio; ``.flatten(1, 2)`` makes it an image of
        C * channels channels.

    Raises:
        ValueError: An argument is out of range, or the images are too small for ``J``.

    References:
        Mallat 2012, "Group Invariant Scattering". Bruna and Mallat 2013, "Invariant Scattering Convolution Networks".
        Oyallon and Mallat 2015, "Deep Roto-Translation Scattering for Object Classification".

    Example:
        >>> Scattering2D(J=2, shape=(28, 28))(torch.rand(4, 1, 28, 28)).shape
        torch.Size([4, 1, 81, 7, 7])
    """

    def __init__(self, J: int = 2, shape: Sequence[int] = (28, 28), L: int = 8) -> None:  # noqa: N803
        super().__init__()
        checks.positive_int(J=J, L=L)
        self.J, self.L, self.shape = J, L, _checked_shape(shape, J)
        self.channels = 1 + J * L + L * L * J * (J - 1) // 2
        self.output_shape = (self.shape[0] >> J, self.shape[1] >> J)
        # One cell of 2^J pixels more on each side than the output has; they hold the reflection.
        height, width = (((size >> J) + 2) << J for size in self.shape)
        above, left = (height - self.shape[0]) // 2, (width - self.shape[1]) // 2
        self._border = (left, width - self.shape[1] - left, above, height - self.shape[0] - above)
        self._largest = 2 * L * height * width  # real and imaginary parts, in the largest intermediate result
        # A signal at level j keeps every 2^j-th sample. Wavelets at a level are those that are applied to it.
        bank = morlet_bank((height, width), J, L)
        for level in range(J):
            for scale in range(level + 1 if level else 0, J):
                self._keep(f"wavelets_{level}_{scale}", coarser(bank[scale], 1 << level))
            for axis, size in enumerate((height, width)):
                self._keep(f"averages_{level}_{axis}", _averages(size, self.output_shape[axis], J, level))

    def forward(self, x: Tensor) -> Tensor:
        """The coefficients of each image, in chunks that fit the processor's cache."""
        if x.dim() < 2 or tuple(x.shape[-2:]) != self.shape or x.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"Scattering2D(shape={self.shape}) takes float32 or float64 of shape (..., {self.shape[0]}, "
                f"{self.shape[1]}), got {x.dtype} of shape {tuple(x.shape)}"
            )
        if not x.numel():  # some libraries have no Fourier transform of nothing
            return x.new_zeros(*x.shape[:-2], self.channels, *self.output_shape)
        images = x.reshape(-1, 1, *self.shape)
        most = max(1, (_IN_CACHE if x.device.type == "cpu" else _ON_DEVICE) // self._largest)
        with torch.autocast(x.device.type, enabled=False):  # its low precision would be that of the features
            parts = [self._coefficients(chunk) for chunk in images.split(most)]
        return torch.cat(parts).reshape(*x.shape[:-2], self.channels, *self.output_shape)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"J={self.J}, shape={self.shape}, L={self.L}"

    def _coefficients(self, x: Tensor) -> Tensor:
        """(n, 1, height, width) -> (n, channels, h, w)."""
        padded = F.pad(x, self._border, mode="reflect")
        first, second = [self._averaged(padded, 0)], []
        spectrum = torch.fft.fft2(padded)
        for fine in range(self.J):
            modulus = self._modulus(spectrum, 0, fine)
            first.append(self._averaged(modulus, fine))
            if fine + 1 == self.J:
                break
            # One angle at a time, so that the products with all coarser wavelets stay in the cache.
            for one_angle in torch.fft.fft2(modulus).split(1, dim=1):
                coarser_ones = range(fine + 1, self.J)
                second += [self._averaged(self._modulus(one_angle, fine, each), each) for each in coarser_ones]
        return torch.cat([*first, *second], dim=1)

    def _modulus(self, spectrum: Tensor, level: int, scale: int) -> Tensor:
        """``|u * psi|`` at all angles of ``scale``, at level ``scale``, for the ``spectrum`` of u at ``level``."""
        wavelets = getattr(self, f"wavelets_{level}_{scale}").to(spectrum.real.dtype)
        values: Tensor = torch.fft.ifft2(_subsampled(spectrum * wavelets, 1 << (scale - level)))
        if values.requires_grad:
            return values.abs()  # whose gradient at zero is zero
        return values.real.square().add_(values.imag.square()).sqrt_()  # three times as fast as abs

    def _averaged(self, values: Tensor, level: int) -> Tensor:
        """Gaussian averages every ``2^J`` pixels of ``values``, which are at ``level``."""
        rows, columns = (getattr(self, f"averages_{level}_{axis}").to(values.dtype) for axis in (0, 1))
        averages: Tensor = rows @ values @ columns.T
        return averages

    def _keep(self, name: str, values: np.ndarray[Any, Any]) -> None:
        # Not saved, because the arguments determine it. In float64, so that both types of images get exact filters.
        self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(values)), persistent=False)


def _subsampled(spectrum: Tensor, step: int) -> Tensor:
    """The spectrum of the signal that keeps every ``step``-th sample of each axis: the mean over its aliases."""
    if step == 1:
        return spectrum
    # Slices of real numbers: a sum over axes of such short lengths is 50 times slower, and complex numbers twice.
    values = torch.view_as_real(spectrum)
    for axis in (-3, -2):
        first, *others = values.chunk(step, dim=axis)
        values = first
        for part in others:
            values = values + part
    return torch.view_as_complex(values / step**2)


def _averages(size: int, kept: int, scales: int, level: int) -> np.ndarray[Any, Any]:
    """The matrix that averages a periodic signal of ``size`` samples, at ``level``, at the ``kept`` inner places."""
    spectrum = coarser(low_pass(size, scales), 1 << level)
    window = np.fft.ifft(spectrum).real
    places = (np.arange(kept) + 1) << (scales - level)
    matrix: np.ndarray[Any, Any] = window[(places[:, None] - np.arange(len(window))) % len(window)]
    return matrix


def _checked_shape(shape: Sequence[int], scales: int) -> tuple[int, int]:
    if not isinstance(shape, Sequence) or len(shape) != 2:
        raise ValueError(f"shape must be the height and width of the images, got {shape!r}")
    height, width = shape
    checks.positive_int(**{"shape[0]": height, "shape[1]": width})
    if min(height, width) <= 1 << scales:
        most = (min(height, width) - 1).bit_length() - 1
        remedy = f"use J={most} or less" if most > 0 else "they are too small for any J"
        raise ValueError(
            f"images of {height} x {width} are too small for J={scales}, which needs more than {1 << scales} pixels: "
            f"{remedy}"
        )
    return height, width
