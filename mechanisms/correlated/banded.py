"""Noise that is correlated over the steps, so that much of it cancels in the weights (banded matrix factorisation)."""

from __future__ import annotations

import copy
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mechanisms.correlated.toeplitz import factorisation_error, optimal_coefficients
from mechanisms.correlated.workload import Workload
from mechanisms.fork import process_identity
from mechanisms.noise import AUTO, NOISE, ScheduledGaussian
from monitors import checks
from monitors.schedules import constant

if TYPE_CHECKING:
    import torch

    from mechanisms.correlated.toeplitz import Floats
    from mechanisms.engines.base import ClippedSum

#: Most bands: each keeps one more vector of the model's size.
MOST_BANDS = 256


@NOISE.register("BandedMF")
class BandedMF(ScheduledGaussian):
    """Gaussian noise ``sigma C^-1 z``, for white noise z and a banded lower-triangular Toeplitz matrix C.

    The noise of a step partly cancels that of the steps before it, so the weights contain less noise at equal epsilon.
    The columns of C have norm 1, and an example that is drawn at most once in any ``bands`` consecutive steps costs as
    much as with independent noise of the same multiplier (see ``CorrelatedEvent``). The sampling must ensure that:
    ``"cyclic_poisson"`` or ``"fixed_order"``. With 1 band, the mechanism is ``Gaussian``.

    A training uses ``prepared``, a copy with coefficients for its optimizer and learning rates. It keeps the noise of
    the last ``bands - 1`` steps, in as many vectors of the model's size. This noise is secret: it is never saved, and a
    resumed training starts without it, at the same cost.

    Args:
        initial_noise_multiplier: ``sigma``, the noise standard deviation over the norm bound, positive.
        bands: Number of diagonals of C, from 1 to ``MOST_BANDS``; ``"auto"``: a plan takes the best number at its
            epsilon.
        norm_bound: None, or the expected norm bound, which is checked against the clip mechanism's.
        seed: 0 for secret noise. Any other integer makes it reproducible and voids the guarantee (tests only).

    References:
        Choquette-Choo et al. 2023, "(Amplified) Banded Matrix Factorization" (arXiv 2306.08153).

    Example:
        >>> noise = BandedMF(initial_noise_multiplier=1.5, bands=4)
        >>> noise.event(step=0), noise
        (GaussianEvent(noise_multiplier=1.5), BandedMF(initial_noise_multiplier=1.5, bands=4))
    """

    def __init__(
        self,
        *,
        initial_noise_multiplier: float = 1.0,
        bands: int | str = AUTO,
        norm_bound: float | None = None,
        seed: int | None = 0,
    ) -> None:
        super().__init__(initial_noise_multiplier=initial_noise_multiplier, norm_bound=norm_bound, seed=seed)
        if bands != AUTO:
            checks.positive_int(bands=bands)
            if int(bands) > MOST_BANDS:
                raise ValueError(f"bands must be at most {MOST_BANDS} or {AUTO!r}, got {bands}")
        self.bands = bands if bands == AUTO else int(bands)
        self.schedule = constant(self.initial_noise_multiplier)
        self.coefficients: Floats | None = None
        self._forget()

    def _forget(self) -> None:
        self._recent: torch.Tensor | None = None  # noise of the last steps, shape (bands - 1, n), at random places
        self._taken = 0
        self._next_step: int | None = None
        self._process = process_identity()

    def __getstate__(self) -> dict[str, Any]:
        # Noise of a release is never copied or saved.
        return {**self.__dict__, "_recent": None, "_taken": 0, "_next_step": None}

    def with_bands(self, bands: int) -> BandedMF:
        """This mechanism with that number of bands, drawing from the same stream."""
        twin = copy.copy(self)
        twin.bands, twin.coefficients = int(bands), None
        if self._rebuild is not None:
            twin._rebuild = partial(self._rebuild, bands=twin.bands)
        return twin

    def prepared(self, workload: Workload | None = None) -> BandedMF:
        """A copy for one training, with no earlier noise and with coefficients that suit ``workload``.

        Args:
            workload: What the optimizer makes of the noise; None: the sums of 1,000 gradients.

        Raises:
            ValueError: The number of bands is ``"auto"``.
        """
        own = copy.copy(self)
        own._forget()
        workload = workload or Workload.of_prefix_sums(1000)
        own.coefficients = np.array(_coefficients(self._known_bands, *_hashable(workload)))
        return own

    def error(self, workload: Workload) -> float:
        """Standard deviation of the noise in ``workload``, over that of independent noise of the same multiplier."""
        coefficients = np.array(_coefficients(self._known_bands, *_hashable(workload)))
        return factorisation_error(coefficients, workload)

    def innovations(self, noise: Floats) -> Floats:
        """``C noise``: the white noise of the first steps of a training, shape (steps, n)."""
        if self.bands == 1:
            return noise
        from scipy.signal import lfilter

        found: Floats = lfilter(self._prepared_coefficients, [1.0], noise, axis=0)
        return found

    def sample(self, size: int, step: int) -> torch.Tensor:
        """The noise of ``step``, for a norm bound of 1, shape (size,), float32; see ``add``."""
        import torch

        if self.bands == 1:
            return super().sample(size, step)
        return self._next(torch.zeros(size, dtype=torch.float32, device="cpu"), step).mul_(self.schedule(step))

    def add(self, summed: ClippedSum, step: int) -> torch.Tensor:
        """The private release: the sum plus the noise of ``step``, in place, shape (P,).

        Noise is correlated over consecutive steps of one training only. A step that does not follow the last one, or a
        sum of a different size, type or device, begins with no earlier noise, as a resumed training does.
        """
        scale = self.schedule(step) * summed.norm_bound
        if self.bands == 1:
            return self.generator.add_normal_(summed.flat_grad, scale)
        return summed.flat_grad.add_(self._next(summed.flat_grad, step), alpha=scale)

    def _next(self, like: torch.Tensor, step: int) -> torch.Tensor:
        """``n_t = (z_t - sum_k c_k n_{t-k}) / c_0``, of the shape, type and device of ``like``; not to be changed."""
        import torch

        from mechanisms.engines.device_copy import device_copy

        coefficients = self._prepared_coefficients
        kept = len(coefficients) - 1
        if not self._continues(like, step):
            self._forget()
        if self._recent is None:
            self._recent = torch.zeros(kept, like.numel(), dtype=like.dtype, device=like.device)
        slot = self._taken % max(kept, 1)
        # the step before is one place before ``slot``
        weights = np.roll(-coefficients[:0:-1] / coefficients[0], slot)
        drawn = torch.mv(self._recent.t(), device_copy(torch.as_tensor(weights, dtype=like.dtype), like.device))
        self.generator.add_normal_(drawn, 1.0 / float(coefficients[0]))
        if kept:
            self._recent[slot].copy_(drawn)
        self._taken += 1
        self._next_step = step + 1
        return drawn

    def _continues(self, like: torch.Tensor, step: int) -> bool:
        """Whether ``step`` follows the last one, in the same training, as far as can be seen.

        A different training may draw the same example again at once. After a fork, the parent continues with the noise.
        """
        recent = self._recent
        if recent is None or step != self._next_step or self._process != process_identity():
            return False
        return (recent.shape[1:], recent.dtype, recent.device) == (like.shape, like.dtype, like.device)

    @property
    def _known_bands(self) -> int:
        if isinstance(self.bands, str):
            raise ValueError(
                f"bands={self.bands!r} is chosen by a plan for a target epsilon: use target_epsilon or "
                "noise_for_epsilon, or give a number of bands"
            )
        return self.bands

    @property
    def _prepared_coefficients(self) -> Floats:
        if self.coefficients is None:
            raise RuntimeError(
                f"{self!r} is not prepared for a training; call prepared() once for each training, and draw from the "
                "copy that it returns"
            )
        if len(self.coefficients) != self.bands:
            raise RuntimeError(
                f"{self!r} was prepared for {len(self.coefficients)} bands and changed since; call prepared() again"
            )
        return self.coefficients


def _hashable(workload: Workload) -> tuple[bytes, bytes]:
    return workload.signal.tobytes(), workload.importance.tobytes()


@lru_cache(maxsize=64)
def _coefficients(bands: int, signal: bytes, importance: bytes) -> tuple[float, ...]:
    workload = Workload(np.frombuffer(signal), np.frombuffer(importance))
    return tuple(optimal_coefficients(bands, workload).tolist())
