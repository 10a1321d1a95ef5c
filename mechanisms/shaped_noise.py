"""Gaussian noise whose multiplier changes over a range of steps: decreasing, increasing, or late in training."""

from __future__ import annotations

from mechanisms.noise import NOISE, ScheduledGaussian
from monitors import checks
from monitors.schedules import between


@NOISE.register("ShapedGaussian")
class ShapedGaussian(ScheduledGaussian):
    """Gaussian noise whose multiplier changes to ``final_ratio`` times its initial value, then stays constant.

    The multiplier is a function of the step alone, so each step's event states the noise that was actually added. The
    shape needs no separate privacy argument.

    Args:
        initial_noise_multiplier: Noise standard deviation over the norm bound up to ``first_step``, positive.
        last_step: Step at which the final value is reached; usually the last step of the run.
        final_ratio: Final over initial multiplier, positive; below 1 the noise decreases, above 1 it increases.
        path: ``"Linear"`` or ``"Cosine"``.
        first_step: Step at which the change begins; for a late-phase decay, a late step.
        norm_bound: None, or the expected norm bound, which is checked against the clip mechanism's.
        seed: 0 for secret noise. Any other integer makes it reproducible and voids the guarantee (tests only).

    Raises:
        ValueError: A value is out of range, or ``last_step`` is not above ``first_step``.

    Example:
        >>> noise = ShapedGaussian(initial_noise_multiplier=1.0, last_step=100, final_ratio=0.5)
        >>> noise.event(step=0), noise.event(step=100)
        (GaussianEvent(noise_multiplier=1.0), GaussianEvent(noise_multiplier=0.5))
    """

    def __init__(
        self,
        *,
        initial_noise_multiplier: float = 1.0,
        last_step: int = 1000,
        final_ratio: float = 0.5,
        path: str = "Linear",
        first_step: int = 0,
        norm_bound: float | None = None,
        seed: int | None = 0,
    ) -> None:
        super().__init__(initial_noise_multiplier=initial_noise_multiplier, norm_bound=norm_bound, seed=seed)
        checks.positive(final_ratio=final_ratio)
        first = self.initial_noise_multiplier
        self.last_step, self.first_step, self.path = last_step, first_step, path
        self.decay_policy, self.final_ratio = path, float(final_ratio)
        self.schedule = between(first, first * final_ratio, path, first_step, last_step)
