"""What each step of a run releases: the mechanisms that train also state the plan, so the two cannot differ."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dpmodel.planning.count_noise import count_warning
from dpmodel.planning.noise_floor import falls_away, no_noise
from dpmodel.planning.stretches import plan_stretches
from monitors.calibration import calibrate_noise_multiplier
from monitors.ledger import Ledger

if TYPE_CHECKING:
    from mechanisms.clipping import ClipMechanism
    from mechanisms.noise import NoiseMechanism
    from mechanisms.sampling import Sampler
    from mechanisms.units import ClippedUnit
    from monitors.accountant import Accountant
    from monitors.events import PrivacyEvent


#: How a note on the ledger ends that voids the guarantee.
NO_GUARANTEE = "no guarantee"

#: How such a note begins if the randomness is known.
REPRODUCIBLE = "reproducible"

#: Note of a training with ``isolation="trust"``.
NOT_VERIFIED = f"isolation not verified (isolation='trust'): {NO_GUARANTEE}"


def large_delta(delta: float, num_examples: int) -> str:
    """The warning about a delta that is not below one over the number of examples."""
    return (
        f"delta {delta:g} is not below 1 / {num_examples:,} examples: publishing one randomly chosen example would "
        f"satisfy it. State epsilon at a smaller delta, such as {0.1 / num_examples:.0e}"
    )


def require_combinable(noise: NoiseMechanism, clip: ClipMechanism, unit: ClippedUnit) -> None:
    """Refuse clipping for which the cost of correlated noise is not proven.

    Raises:
        ValueError: The bound follows the norms, or groups of examples are clipped; names the pair and what fits.
    """
    if noise.bands == 1:
        return
    name = type(noise).__name__
    if unit.grouped:
        raise ValueError(
            f"{name} with bands={noise.bands} does not go together with micro-batches of {unit.group_size}: its cost "
            "is proven for examples that are clipped one by one. Use micro_batches=None, or independent noise "
            "('Gaussian')"
        )
    if clip.event(0, unit) is not None:
        raise ValueError(
            f"{name} with bands={noise.bands} does not go together with adaptive clipping ({type(clip).__name__}): the "
            "noise of a step is to cancel that of earlier steps, at the same bound. Use the clip mechanism 'Fixed', "
            "'Automatic' or 'PerLayer', or independent noise ('Gaussian')"
        )


def require_apart(noise: NoiseMechanism, sampler: Sampler) -> None:
    """Refuse noise that is correlated over more steps than ``sampler`` keeps between two steps with a common example.

    Raises:
        ValueError: States both numbers, or that the number of bands is still open.
    """
    if isinstance(noise.bands, str):
        raise ValueError(
            f"bands={noise.bands!r} is chosen by a plan for a target epsilon: use target_epsilon or noise_for_epsilon, "
            "or give a number of bands"
        )
    if noise.bands > sampler.bands:
        raise ValueError(
            f"the noise is correlated over {noise.bands} steps, but an example may be drawn again after "
            f"{sampler.bands}: the sampler or the noise was changed after the plan was made. Give each plan a sampler "
            "of its own"
        )


@dataclass(frozen=True)
class ReleasePlan:
    """The mechanisms of a run and the event that each of its steps will record; needs neither data nor torch.

    Args:
        noise: Noise mechanism.
        clip: Clip mechanism.
        unit: The clipped unit.
        sampler: Sampler of the rows.
        first_step: Step number (over the model's life) at which the sampler starts.

    Raises:
        ValueError: Correlated noise does not go together with the clipping or the sampling.

    Example:
        >>> from mechanisms import ClippedUnit, Fixed, Gaussian, PoissonSampler
        >>> plan = ReleasePlan(Gaussian(), Fixed(), ClippedUnit(1, 10), PoissonSampler(100, 10))
        >>> plan.ledger(steps=20)
        Ledger(20 releases in 1 rows)
    """

    noise: NoiseMechanism
    clip: ClipMechanism
    unit: ClippedUnit
    sampler: Sampler
    first_step: int = 0

    def __post_init__(self) -> None:
        require_combinable(self.noise, self.clip, self.unit)
        if isinstance(self.noise.bands, int):
            self.sampler.separate(self.noise.bands)

    def at(self, initial_noise_multiplier: float) -> ReleasePlan:
        """This plan with its noise re-scaled by ``NoiseMechanism.at``.

        The two plans share clip mechanism and sampler, so train only one of them.
        """
        return replace(self, noise=self.noise.at(initial_noise_multiplier))

    def event(self, step: int) -> PrivacyEvent:
        """Everything that step ``step`` releases about its sample, amplified by the sampling as one event.

        Raises:
            ValueError: The noise is correlated over more steps than the sampler, which has been changed since, keeps
                between two steps with a common example.
        """
        if self.noise.bands != self.sampler.bands:
            require_apart(self.noise, self.sampler)
        released = [self.noise.event(step, self.unit.sensitivity_factor)]
        clip_event = self.clip_event(step)
        if clip_event is not None:
            released.append(clip_event)
        return self.sampler.amplify(step - self.first_step, *released)

    def clip_event(self, step: int) -> PrivacyEvent | None:
        """What the clip mechanism releases at step ``step``, before amplification; None for nothing."""
        return self.clip.event(step, replace(self.unit, zeroed=self.sampler.zeroes))

    @property
    def count_warning(self) -> str:
        """A warning if the noisy count of adaptive clipping costs more than the gradients; empty if it does not."""
        count = self.clip_event(self.first_step)
        if count is None:
            return ""
        return count_warning(self.clip, count, self.noise.event(self.first_step, self.unit.sensitivity_factor))

    def ledger(self, steps: int) -> Ledger:
        """The ledger of the first ``steps`` steps of this plan."""
        ledger = Ledger()
        for step in range(self.first_step, self.first_step + steps):
            ledger.record(self.event(step))
        return ledger

    def summary(self, steps: int) -> Ledger:
        """A short ledger that costs at least as much as ``ledger(steps)``, for figures of long trainings.

        The steps of a stretch of almost constant noise are recorded as the most expensive of them. This raises
        epsilon by about one part in ten thousand. Short trainings, constant noise and shuffled epochs are exact.

        Example:
            >>> from mechanisms import ClippedUnit, Fixed, NoiseMechanismsFactory, PoissonSampler
            >>> noise = NoiseMechanismsFactory.create("AdaGaussian", noise_decay_rate=1e-7)
            >>> plan = ReleasePlan(noise, Fixed(), ClippedUnit(1, 10), PoissonSampler(100, 10))
            >>> summary = plan.summary(steps=1_000_000)
            >>> summary.total, len(summary) < 10_000
            (1000000, True)
        """
        ledger = Ledger()
        first, last = self.first_step, self.first_step + steps
        for step, count in plan_stretches(self.noise, self.clip, self.sampler, first, last):
            ledger.record(self.event(step), count)
        return ledger

    def ledger_to_search(self, steps: int) -> Ledger:
        """The ledger that a search for a noise multiplier evaluates: not private if the noise falls to nothing.

        That sends the search to higher multipliers; the true epsilon of such a schedule would take minutes.
        """
        return no_noise() if falls_away(self.noise, steps) else self.summary(steps)

    def multiplier_for(
        self,
        target_epsilon: float,
        delta: float,
        steps: int,
        accountant: str | Accountant = "rdp",
        before: Ledger | None = None,
    ) -> float:
        """The smallest initial noise multiplier that keeps the first ``steps`` steps within the target.

        Args:
            target_epsilon: Positive.
            delta: In (0, 1).
            steps: Planned steps.
            accountant: Name or object.
            before: Earlier releases, which the target then covers too.

        Raises:
            ValueError: A value is out of range, or the noise mechanism cannot be re-scaled.
            CalibrationError: No multiplier meets the target.

        Example:
            >>> from mechanisms import ClippedUnit, Fixed, NoiseMechanismsFactory, PoissonSampler
            >>> noise = NoiseMechanismsFactory.create("Gaussian")
            >>> plan = ReleasePlan(noise, Fixed(), ClippedUnit(1, 512), PoissonSampler(60_000, 512))
            >>> round(plan.multiplier_for(3.0, 1e-5, steps=1170), 3)
            0.837
        """

        def ledger_of(noise_multiplier: float) -> Ledger:
            planned = self.at(noise_multiplier).ledger_to_search(steps)
            return planned if before is None else before.copy().extend(planned, shift=0)

        return calibrate_noise_multiplier(target_epsilon, delta, ledger_of, accountant)

    @property
    def statement(self) -> dict[str, str]:
        """Unit, neighbour relation and sampling in words, for monitors and the privacy report."""
        return {
            "unit": self.unit.describe(),
            "relation": self.sampler.relation,
            "sampling": self.sampler.describe(),
        }

    @property
    def facts(self) -> dict[str, int | float | str | None]:
        """The true values of the numbers that a monitor may have been given."""
        return {
            "num_samples": self.sampler.stated_examples,
            "batch_size": self.sampler.batch_size,
            "initial_noise_multiplier": self.noise.initial_noise_multiplier if self.noise.private else 0.0,
            "noise_decay_mode": self.noise.decay_policy,
            "noise_decay_rate": self.noise.noise_decay_rate,
        }

    @property
    def secret(self) -> bool:
        """Whether the randomness of this plan is secret, so that no two of its runs are alike."""
        return self.noise.private and not self.caveats

    @property
    def caveats(self) -> tuple[str, ...]:
        """Notes that must accompany every epsilon of this plan."""
        seeded = {
            "noise": self.noise.generator.reproducible or self.clip.reproducible,
            "sampling": self.sampler.generator.reproducible,
        }
        return tuple(f"{REPRODUCIBLE} {what}: {NO_GUARANTEE}" for what, fixed in seeded.items() if fixed)
