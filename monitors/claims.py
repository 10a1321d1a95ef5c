"""The numbers that a user tells a monitor: checked against the run that it watches, or used to plan without one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any

from monitors import checks
from monitors.errors import MonitorMismatchError
from monitors.events import DisjointEvent, GaussianEvent, NonPrivateEvent, PoissonSampledEvent, PrivacyEvent
from monitors.schedules import DECAYS, Schedule, decayed


@dataclass(frozen=True)
class Claims:
    """What the user says about the run; None where nothing was said.

    Args:
        num_samples: Examples in the training set.
        batch_size: Expected examples of a batch.
        initial_noise_multiplier: Multiplier of the first step.
        noise_decay_mode: Decay policy, None for constant noise.
        noise_decay_rate: Its rate.
    """

    num_samples: int | None = None
    batch_size: int | None = None
    initial_noise_multiplier: float | None = None
    noise_decay_mode: str | None = None
    noise_decay_rate: float | None = None

    def __post_init__(self) -> None:
        if self.num_samples is not None:
            checks.positive_int(num_samples=self.num_samples)
        if self.batch_size is not None:
            checks.positive_int(batch_size=self.batch_size)
        if self.num_samples is not None and self.batch_size is not None and self.batch_size > self.num_samples:
            raise ValueError(f"batch_size must be at most num_samples, got {self.batch_size} and {self.num_samples}")
        if self.initial_noise_multiplier is not None:
            checks.positive(initial_noise_multiplier=self.initial_noise_multiplier)
        if self.noise_decay_mode is not None:
            checks.one_of(DECAYS.names(), noise_decay_mode=self.noise_decay_mode)
        if self.noise_decay_rate is not None:
            checks.non_negative(noise_decay_rate=self.noise_decay_rate)

    def check(self, facts: Mapping[str, Any]) -> None:
        """Compare with what the run really uses.

        Raises:
            MonitorMismatchError: A number contradicts; all contradictions are named with both values.
        """
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        wrong = [
            f"{name}: the monitor was told {value!r}, the run uses {facts[name]!r}"
            for name, value in given.items()
            if name in facts and not _same(value, facts[name])
        ]
        if wrong:
            raise MonitorMismatchError(
                f"the monitor contradicts the run ({'; '.join(wrong)}). Nothing was spent. "
                "Correct the numbers, or leave them out: the monitor then takes them from the run."
            )

    @property
    def steps_per_epoch(self) -> int:
        """``num_samples // batch_size``."""
        self._require("num_samples", "batch_size")
        assert self.num_samples is not None
        assert self.batch_size is not None
        return self.num_samples // self.batch_size

    @property
    def constant(self) -> bool:
        """Whether every step has the same multiplier."""
        return self.noise_decay_mode is None

    def event(self, step: int, *, sampled: bool = True) -> PrivacyEvent:
        """The event of one planned step.

        Args:
            step: 0 is the first.
            sampled: Poisson sampling at rate ``batch_size / num_samples``; otherwise shuffled epochs, without
                amplification.

        Raises:
            ValueError: A number that is needed was not given; it is named.
        """
        self._require("num_samples", "batch_size", "initial_noise_multiplier")
        if not self.constant:
            self._require("noise_decay_rate")
        assert self.num_samples is not None
        assert self.batch_size is not None
        multiplier = self._schedule(step)
        # a decay that has run down to zero is a release without noise
        inner = GaussianEvent(multiplier) if multiplier > 0 else NonPrivateEvent()
        if sampled:
            return PoissonSampledEvent(self.batch_size / self.num_samples, inner)
        return DisjointEvent(step // self.steps_per_epoch, inner)

    @cached_property
    def _schedule(self) -> Schedule:
        assert self.initial_noise_multiplier is not None
        return decayed(self.initial_noise_multiplier, self.noise_decay_mode, self.noise_decay_rate or 0.0)

    def _require(self, *names: str) -> None:
        missing = [name for name in names if getattr(self, name) is None]
        if missing:
            raise ValueError(
                f"planning without a run needs {', '.join(missing)}: give them to PrivacyMonitorFactory.create, "
                "or attach the monitor to a run"
            )


def _same(given: Any, used: Any) -> bool:
    if isinstance(given, Real) and isinstance(used, Real):
        return math.isclose(float(given), float(used), rel_tol=1e-9)
    return bool(given == used)
