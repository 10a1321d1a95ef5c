"""Noise mechanisms: one schedule determines both the noise added to the clipped sum and the event that states it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from mechanisms.readable import readable
from mechanisms.rng import SecureGenerator
from monitors import checks
from monitors.events import GaussianEvent, NonPrivateEvent, PrivacyEvent
from monitors.registry import Registry
from monitors.schedules import DECAYS, Schedule, constant

if TYPE_CHECKING:
    import torch

    from mechanisms.correlated.workload import Floats, Workload
    from mechanisms.engines.base import ClippedSum
    from monitors.ledger import Ledger

NOISE: Registry[type[NoiseMechanism]] = Registry("noise mechanism")

#: The value of ``bands`` that leaves the number to a plan.
AUTO = "auto"


class NoiseMechanism(ABC):
    """Base of all noise mechanisms; a custom mechanism is a subclass registered under a name.

    A subclass defines the noise (``sample``, for a norm bound of 1) and its cost (``event``). Both are functions of the
    step alone, so that a plan and the run itself state the same events.

    Args:
        initial_noise_multiplier: Noise standard deviation over the norm bound at step 0, positive. For micro-batches of
            more than one example, the multiplier of the recorded event is half of it.
        norm_bound: None, or the expected norm bound, which is checked against the clip mechanism's.
        seed: 0 for secret noise. Any other integer makes it reproducible and voids the guarantee (tests only).
    """

    decay_policy: str | None = None
    noise_decay_rate: float | None = None
    private: ClassVar[bool] = True
    #: Number of steps over which the noise is correlated; 1 for independent noise.
    bands: int | str = 1
    #: What had been spent when ``noise_for_epsilon`` solved for the multiplier; None if it was not solved for.
    spent_before: Ledger | None = None
    #: Builds the mechanism again from ``initial_noise_multiplier=...``; set by ``NoiseMechanismsFactory``.
    _rebuild: Callable[..., NoiseMechanism] | None = None

    def __init__(
        self, *, initial_noise_multiplier: float = 1.0, norm_bound: float | None = None, seed: int | None = 0
    ) -> None:
        checks.positive(initial_noise_multiplier=initial_noise_multiplier)
        if norm_bound is not None:
            checks.positive(norm_bound=norm_bound)
        self.initial_noise_multiplier = float(initial_noise_multiplier)
        self.norm_bound = norm_bound
        self.generator = SecureGenerator(seed, purpose="noise")

    def __repr__(self) -> str:
        return readable(self)

    def at(self, initial_noise_multiplier: float) -> NoiseMechanism:
        """This mechanism at a different initial multiplier, with a fresh stream; its factory builds it again.

        Attributes that were set after it was built are not carried over.

        Raises:
            ValueError: It was not built by ``NoiseMechanismsFactory``, or it refuses the multiplier.
        """
        if self._rebuild is None:
            raise ValueError(
                f"{self!r} cannot be given initial_noise_multiplier={initial_noise_multiplier:g}, because its other "
                "arguments are not known; build it with NoiseMechanismsFactory.create(...), or override at"
            )
        return self._rebuild(initial_noise_multiplier=initial_noise_multiplier)

    def with_bands(self, bands: int) -> NoiseMechanism:
        """This mechanism with that number of bands, if it takes one."""
        raise ValueError(f"{self!r} takes no bands, got {bands}")

    def prepared(self, workload: Workload | None = None) -> NoiseMechanism:
        """The mechanism that adds the noise of one training; independent noise needs no preparation.

        Args:
            workload: What the optimizer makes of the noise of each step; None if that is not known.

        Raises:
            NotImplementedError: The noise is correlated, and the subclass does not say how a training begins.
        """
        del workload
        if self.bands != 1:
            raise NotImplementedError(
                f"{type(self).__name__} correlates the noise of several steps; override prepared so that it returns a "
                "copy without the noise of earlier trainings"
            )
        return self

    def error(self, workload: Workload) -> float:
        """Standard deviation of the noise in ``workload``, over that of independent noise of the same multiplier."""
        del workload
        return 1.0

    def innovations(self, noise: Floats) -> Floats:
        """The independent part of the noise of consecutive steps, shape (steps, n), as the event states it.

        Args:
            noise: Noise of the first steps of a training, over ``noise_multiplier``, shape (steps, n).
        """
        return noise

    @abstractmethod
    def noise_multiplier(self, step: int) -> float:
        """Noise standard deviation over the norm bound at ``step``, counted from 0."""

    @abstractmethod
    def event(self, step: int, sensitivity_factor: float = 1.0) -> PrivacyEvent:
        """Cost of releasing the noisy sum at ``step``, before amplification by sampling.

        Args:
            step: Step number, from 0.
            sensitivity_factor: L2 sensitivity of the sum over the norm bound (2 for micro-batch groups).
        """

    @abstractmethod
    def sample(self, size: int, step: int) -> torch.Tensor:
        """Noise for a norm bound of 1, shape (size,), float64 or float32, on the CPU."""

    def add(self, summed: ClippedSum, step: int) -> torch.Tensor:
        """The private release: the clipped sum plus noise scaled by the bound in force, shape (P,).

        The release overwrites the sum in place, so that the sum without noise does not outlive the step.

        Args:
            summed: The engine's result; its ``norm_bound`` scales the noise, so the noise follows an adaptive bound.
            step: Step number, from 0.
        """
        noise = self.sample(summed.flat_grad.numel(), step).mul_(summed.norm_bound)
        return summed.flat_grad.add_(noise.to(summed.flat_grad))

    def added_scale(self, step: int, norm_bound: float) -> float | None:
        """Standard deviation of the numbers that ``add`` adds, if they are as follows; otherwise None.

        They are independent normal numbers of ``generator``, and ``add`` does nothing else. On a GPU, they are then
        recorded with the update (``cuda_graphs``). A subclass that overrides ``add`` must override this method too, or
        it counts as None.

        Args:
            step: Step number, from 0.
            norm_bound: The bound in force.
        """
        del step, norm_bound
        return None


class ScheduledGaussian(NoiseMechanism):
    """Gaussian noise whose multiplier follows ``self.schedule``."""

    schedule: Schedule

    def noise_multiplier(self, step: int) -> float:
        """Noise standard deviation over the norm bound at ``step``."""
        return self.schedule(step)

    def event(self, step: int, sensitivity_factor: float = 1.0) -> PrivacyEvent:
        """A Gaussian event of multiplier ``noise_multiplier(step) / sensitivity_factor``."""
        return GaussianEvent(self.schedule(step) / sensitivity_factor)

    def sample(self, size: int, step: int) -> torch.Tensor:
        """Independent normal numbers of standard deviation ``noise_multiplier(step)``, shape (size,)."""
        return self.generator.normal(size, scale=self.schedule(step))

    def add(self, summed: ClippedSum, step: int) -> torch.Tensor:
        """The private release, as in the base class, but without a second array of the model's size."""
        return self.generator.add_normal_(summed.flat_grad, self.added_scale(step, summed.norm_bound))

    def added_scale(self, step: int, norm_bound: float) -> float:
        """``noise_multiplier(step) * norm_bound``."""
        return self.schedule(step) * norm_bound


@NOISE.register("Gaussian")
class Gaussian(ScheduledGaussian):
    """Gaussian noise with a constant multiplier.

    Args:
        initial_noise_multiplier: Noise standard deviation over the norm bound, positive.
        norm_bound: None, or the expected norm bound, which is checked against the clip mechanism's.
        seed: 0 for secret noise. Any other integer makes it reproducible and voids the guarantee (tests only).

    References:
        Abadi et al. 2016, "Deep Learning with Differential Privacy", algorithm 1.

    Example:
        >>> Gaussian(initial_noise_multiplier=1.5).event(step=0)
        GaussianEvent(noise_multiplier=1.5)
    """

    def __init__(
        self, *, initial_noise_multiplier: float = 1.0, norm_bound: float | None = None, seed: int | None = 0
    ) -> None:
        super().__init__(initial_noise_multiplier=initial_noise_multiplier, norm_bound=norm_bound, seed=seed)
        self.schedule = constant(self.initial_noise_multiplier)


@NOISE.register("AdaGaussian")
class AdaGaussian(ScheduledGaussian):
    """Gaussian noise with a multiplier that decays with the step (MindArmour's adaptive noise).

    Args:
        initial_noise_multiplier: Noise standard deviation over the norm bound at step 0, positive.
        noise_decay_rate: Decay rate ``r`` per step.
        decay_policy: ``"Time"``: s0 / (1 + r t), ``"Step"``: s0 (1 - r)^t, or ``"Exp"``: s0 exp(-r t).
        norm_bound: None, or the expected norm bound, which is checked against the clip mechanism's.
        seed: 0 for secret noise. Any other integer makes it reproducible and voids the guarantee (tests only).

    Example:
        >>> AdaGaussian(initial_noise_multiplier=1.0, noise_decay_rate=0.5, decay_policy="Time").event(step=2)
        GaussianEvent(noise_multiplier=0.5)
    """

    def __init__(
        self,
        *,
        initial_noise_multiplier: float = 1.0,
        noise_decay_rate: float = 6e-6,
        decay_policy: str = "Exp",
        norm_bound: float | None = None,
        seed: int | None = 0,
    ) -> None:
        super().__init__(initial_noise_multiplier=initial_noise_multiplier, norm_bound=norm_bound, seed=seed)
        self.decay_policy = decay_policy
        self.noise_decay_rate = float(noise_decay_rate)
        self.schedule = DECAYS.create(decay_policy, self.initial_noise_multiplier, noise_decay_rate)


class NoNoise(NoiseMechanism):
    """Clipping without noise, for a non-private baseline; its event means an infinite epsilon."""

    private: ClassVar[bool] = False

    def __repr__(self) -> str:
        return "NoNoise(): not private"

    def noise_multiplier(self, step: int) -> float:
        """Zero at every step."""
        return 0.0

    def event(self, step: int, sensitivity_factor: float = 1.0) -> PrivacyEvent:
        """A release without privacy."""
        return NonPrivateEvent()

    def sample(self, size: int, step: int) -> torch.Tensor:
        """Zeros, shape (size,)."""
        import torch

        return torch.zeros(size, dtype=torch.float32, device="cpu")
