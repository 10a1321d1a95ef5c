"""The part of a training run that a privacy monitor sees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from monitors.events import PrivacyEvent
from monitors.ledger import Ledger


class RunView(Protocol):
    """The part of a run that monitors read. Any object with these members works; nothing else is used."""

    @property
    def ledger(self) -> Ledger:
        """All releases so far, each recorded before it is used."""

    @property
    def step(self) -> int:
        """Completed steps over the model's lifetime; after a step, this includes it."""

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps in one epoch."""

    @property
    def planned_steps(self) -> int:
        """Value of ``step`` at the end of this ``fit``."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """The numbers that the run uses, under the names of ``Claims``: ``num_samples``, ``batch_size`` and others."""

    @property
    def statement(self) -> Mapping[str, str]:
        """``unit``, ``relation`` and ``sampling``, in words."""

    def event(self, step: int) -> PrivacyEvent:
        """The event that step number ``step`` (from 0) will record, from the same function that records it."""

    def stop(self, reason: str) -> None:
        """End the training before the next step, for the given reason."""

    def say(self, text: str) -> None:
        """Show a line to the user."""
