"""What a privacy monitor sees of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from monitors.events import PrivacyEvent
from monitors.ledger import Ledger


class RunView(Protocol):
    """The part of a run that monitors read. Anything with these members will do; nothing else of the run is used."""

    @property
    def ledger(self) -> Ledger:
        """Everything released so far, written before it is used."""

    @property
    def step(self) -> int:
        """Steps done over the model's life; after a step it includes that step."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch."""

    @property
    def planned_steps(self) -> int:
        """Value of ``step`` at the end of this ``fit``."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """The numbers in use, by the names of ``Claims``: ``num_samples``, ``batch_size`` and the others."""

    @property
    def statement(self) -> Mapping[str, str]:
        """``unit``, ``relation`` and ``sampling`` in words."""

    def event(self, step: int) -> PrivacyEvent:
        """The event that step number ``step`` (0 is the first) will record, from the function that records it."""

    def stop(self, reason: str) -> None:
        """End the training before the next step, and say why."""

    def say(self, text: str) -> None:
        """Show a line to the user."""
