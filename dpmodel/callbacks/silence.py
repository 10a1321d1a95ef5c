"""Trains without output."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dpmodel.callbacks.base import Callback

if TYPE_CHECKING:
    from dpmodel.training.run import Run


def say_nothing(text: str) -> None:
    """The printer of a silent run."""
    del text


class Silence(Callback):
    """Keeps a run from printing: neither lines of monitors nor progress bars are shown."""

    def on_train_begin(self, run: Run) -> None:
        """Replace the printer."""
        run.printer = say_nothing
