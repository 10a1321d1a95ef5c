"""Ends a training that no longer improves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dpmodel.callbacks.base import Callback
from dpmodel.callbacks.watched_metric import direction, matching_name
from monitors import checks

if TYPE_CHECKING:
    from dpmodel.training.run import Run


class EarlyStopping(Callback):
    """Stop when a validation metric has not improved for several validations.

    The validation data must be public or separate from the training data: the moment of stopping depends on them and is
    not on the ledger. The training loss cannot be watched: stopping by it would be a release without noise.

    Args:
        monitor: Name of the validation metric.
        patience: Validations without improvement to tolerate; the next one stops the training.
        min_delta: Changes up to this much do not count as improvement; at least 0.
        mode: ``"max"``, ``"min"``, or ``"auto"``: ``"min"`` for losses and errors, else ``"max"``.

    Raises:
        ValueError: A setting is out of range, or (when training begins) there is no such metric.
    """

    def __init__(
        self, monitor: str = "accuracy", patience: int = 3, min_delta: float = 0.0, mode: str = "auto"
    ) -> None:
        checks.non_negative_int(patience=patience)
        checks.non_negative(min_delta=min_delta)
        self.monitor, self.patience, self.min_delta = monitor, patience, min_delta
        self._sign = direction(monitor, mode)
        self.best = -self._sign * math.inf
        self._waited = 0

    def on_train_begin(self, run: Run) -> None:
        """Refuse a metric that will never be measured, before any budget is spent; forget an earlier training."""
        matching_name(self.monitor, run.model.metrics.names if run.has_validation else (), "EarlyStopping")
        self.best = -self._sign * math.inf
        self._waited = 0

    def on_eval_end(self, run: Run) -> None:
        """Compare with the best value so far."""
        value = run.metrics[matching_name(self.monitor, run.metrics, "EarlyStopping")]
        # A NaN metric compares false to everything and so does not count as improvement.
        if self._sign * (value - self.best) > self.min_delta:
            self.best = value
            self._waited = 0
        else:
            self._waited += 1
        if self._waited > self.patience:
            run.stop(
                f"{self.monitor} has not improved on {self.best:.4g} by more than {self.min_delta:g} "
                f"for {self._waited} validations"
            )

    def state_dict(self) -> dict[str, Any]:
        """The best value, and for how long it has been the best."""
        return {"best": self.best, "waited": self._waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore ``state_dict``."""
        checks.numbers(best=state["best"])
        checks.non_negative_int(waited=state["waited"])
        self.best, self._waited = float(state["best"]), int(state["waited"])
