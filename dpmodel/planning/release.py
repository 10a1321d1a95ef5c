"""What each step of a run releases, from the mechanisms that will do it: one function for the plan and for the run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from monitors.ledger import Ledger

if TYPE_CHECKING:
    from mechanisms.clipping import ClipMechanism
    from mechanisms.noise import NoiseMechanism
    from mechanisms.sampling import Sampler
    from mechanisms.units import ClippedUnit
    from monitors.events import PrivacyEvent


#: How a note on the ledger ends that voids the guarantee.
NO_GUARANTEE = "no guarantee"

#: Note of a training with ``isolation="trust"``.
NOT_VERIFIED = f"isolation not verified (isolation='trust'): {NO_GUARANTEE}"


def large_delta(delta: float, num_examples: int) -> str:
    """What must be said of a delta that is not below one over the number of examples."""
    return (
        f"delta {delta:g} is not below 1 / {num_examples:,} examples: publishing one randomly chosen example would "
        f"satisfy it. State epsilon at a smaller delta, such as {0.1 / num_examples:.0e}"
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

    def event(self, step: int) -> PrivacyEvent:
        """All that step ``step`` releases of its drawn sample, amplified by the sampling as one."""
        released = [self.noise.event(step, self.unit.sensitivity_factor)]
        clip_event = self.clip_event(step)
        if clip_event is not None:
            released.append(clip_event)
        return self.sampler.amplify(step - self.first_step, *released)

    def clip_event(self, step: int) -> PrivacyEvent | None:
        """What the clip mechanism itself releases at step ``step``, before amplification; None for nothing."""
        return self.clip.event(step, replace(self.unit, zeroed=self.sampler.zeroes))

    def ledger(self, steps: int) -> Ledger:
        """The ledger of the first ``steps`` steps of this plan."""
        ledger = Ledger()
        for step in range(self.first_step, self.first_step + steps):
            ledger.record(self.event(step))
        return ledger

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
        """The numbers that a monitor may have been given a copy of, as they really are."""
        return {
            "num_samples": self.sampler.num_examples,
            "batch_size": self.sampler.batch_size,
            "initial_noise_multiplier": self.noise.initial_noise_multiplier if self.noise.private else 0.0,
            "noise_decay_mode": self.noise.decay_policy,
            "noise_decay_rate": self.noise.noise_decay_rate,
        }

    @property
    def secret(self) -> bool:
        """Whether the noise of this plan is secret, so that no two of its runs are alike."""
        return self.noise.private and not self.caveats

    @property
    def caveats(self) -> tuple[str, ...]:
        """Statements that must stand beside every epsilon of this plan."""
        seeded = {
            "noise": self.noise.generator.reproducible or self.clip.reproducible,
            "sampling": self.sampler.generator.reproducible,
        }
        return tuple(f"reproducible {what}: {NO_GUARANTEE}" for what, fixed in seeded.items() if fixed)
