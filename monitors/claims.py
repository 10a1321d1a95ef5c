"""The numbers that a user gives to a monitor: checked against the run, or used to plan without a run."""

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
from monitors.ledger import Ledger
from monitors.schedules import DECAYS, Schedule, decayed, stretches


@dataclass(frozen=True)
class Claims:
    """What the user states about the run; None for anything not stated.

    Args:
        num_samples: Examples in the training set.
        batch_size: Expected number of examples in a batch.
        initial_noise_multiplier: Noise multiplier of the first step.
        noise_decay_mode: Decay policy; None for constant noise.
        noise_decay_rate: Rate of the decay.
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
        """Compare the stated numbers with those that the run uses.

        Raises:
            MonitorMismatchError: Numbers contradict the run; the message lists each with both values.
        """
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        wrong = [
            f"{name}: the monitor was given {value!r}, but the run uses {facts[name]!r}"
            for name, value in given.items()
            if name in facts and not _same(value, facts[name])
        ]
        if wrong:
            raise MonitorMismatchError(
                f"the monitor contradicts the run ({'; '.join(wrong)}). Nothing was spent. "
                "Correct the numbers, or omit them: the monitor then takes them from the run."
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
            step: Step number, from 0.
            sampled: True for Poisson sampling at rate ``batch_size / num_samples``; False for shuffled epochs, without
                amplification.

        Raises:
            ValueError: A required number was not given; the message names it.
        """
        self._require("num_samples", "batch_size", "initial_noise_multiplier")
        if not self.constant:
            self._require("noise_decay_rate")
        assert self.num_samples is not None
        assert self.batch_size is not None
        multiplier = self._schedule(step)
        # a multiplier that has decayed to zero means a release without noise
        inner = GaussianEvent(multiplier) if multiplier > 0 else NonPrivateEvent()
        if sampled:
            return PoissonSampledEvent(self.batch_size / self.num_samples, inner)
        return DisjointEvent(step // self.steps_per_epoch, inner)

    def ledger(self, steps: int, *, sampled: bool = True) -> Ledger:
        """The ledger of the first ``steps`` planned steps, or of a long training a short one that costs more, hardly.

        Args:
            steps: Number of steps.
            sampled: As in ``event``.
        """
        found = Ledger()
        self.event(0, sampled=sampled)  # names a missing number
        for step, count in stretches(self._schedule, 0, steps) if sampled else ((step, 1) for step in range(steps)):
            found.record(self.event(step, sampled=sampled), count)
        return found

    @cached_property
    def _schedule(self) -> Schedule:
        assert self.initial_noise_multiplier is not None
        return decayed(self.initial_noise_multiplier, self.noise_decay_mode, self.noise_decay_rate or 0.0)

    def _require(self, *names: str) -> None:
        missing = [name for name in names if getattr(self, name) is None]
        if missing:
            raise ValueError(
                f"planning without a run needs {', '.join(missing)}: pass them to PrivacyMonitorFactory.create, "
                "or attach the monitor to a run"
            )


def _same(given: Any, used: Any) -> bool:
    if isinstance(given, Real) and isinstance(used, Real):
        return math.isclose(float(given), float(used), rel_tol=1e-9)
    return bool(given == used)
