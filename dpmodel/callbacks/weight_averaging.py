"""Averages the weights over the steps, for validation and for the final model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from dpmodel.callbacks.base import Callback
from monitors import checks

if TYPE_CHECKING:
    from dpmodel.training.run import Run

#: Steps over which the average follows the weights closely at first.
_WARM_UP = 10

#: The weights that averages replace during a validation, by network. Several callbacks share them: the second one to
#: replace weights finds an average, not the weights of the training.
_REPLACED: WeakKeyDictionary[nn.Module, dict[str, Tensor]] = WeakKeyDictionary()


class WeightAveraging(Callback):
    """Keep an exponential moving average of the trained weights: validate with it, and end with it.

    Averaging private weights is post-processing and costs nothing; it removes much of the noise of the last steps.
    Training continues from the weights themselves, which the average replaces only during validation. A resumed
    training keeps its average. Of several such callbacks, such as for several decays, validation and final model use
    the last.

    Args:
        decay: Part of the average that each step keeps, in [0, 1). The first steps keep less, ``(1 + t) / (10 + t)`` at
            step ``t``, so that the random initial weights are soon forgotten.
        keep: Whether the network ends with the average; a note on the ledger then says so. False leaves the trained
            weights in the network; the average is ``averaged_weights``.

    Raises:
        ValueError: ``decay`` is out of range.

    Example:
        >>> WeightAveraging(decay=0.99).decay
        0.99

    References:
        De et al. 2022, "Unlocking High-Accuracy Differentially Private Image Classification through Scale".
    """

    def __init__(self, decay: float = 0.999, keep: bool = True) -> None:
        checks.unit_interval(decay=decay)
        if decay == 1:
            raise ValueError("decay must be below 1, got 1: the average would never leave the initial weights")
        self.decay = float(decay)
        self.keep = bool(keep)
        #: The average by the names of the parameters; empty before the first training.
        self.averaged_weights: dict[str, Tensor] = {}
        self._steps = 0

    def on_train_begin(self, run: Run) -> None:
        """Start from the current weights."""
        self._steps = 0
        _REPLACED.pop(run.network, None)
        self.averaged_weights = {name: value.detach().clone() for name, value in _trained(run)}

    def on_train_step_end(self, run: Run) -> None:
        """Include the weights of the step."""
        self._steps += 1
        decay = min(self.decay, (1 + self._steps) / (_WARM_UP + self._steps))
        names, values = zip(*_trained(run), strict=True)
        averages = [self.averaged_weights[name] for name in names]
        with torch.no_grad():
            torch._foreach_lerp_(averages, [value.detach() for value in values], 1 - decay)

    def on_eval_begin(self, run: Run) -> None:
        """Replace the weights with the average."""
        if run.network not in _REPLACED:
            _REPLACED[run.network] = {name: value.detach().clone() for name, value in _trained(run)}
        _write(run, self.averaged_weights)

    def on_eval_end(self, run: Run) -> None:
        """Put the weights back."""
        _put_back(run)

    def on_train_end(self, run: Run) -> None:
        """End with the average or with the trained weights, also after a validation that failed."""
        _put_back(run)
        if self.keep and self._steps and not run.ledger.violations:
            with run.post_processing(f"the moving average of the weights over the steps, decay {self.decay:g}"):
                _write(run, self.averaged_weights)

    def state_dict(self) -> dict[str, Any]:
        """The average, and the number of steps in it."""
        return {"average": dict(self.averaged_weights), "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore ``state_dict``."""
        checks.non_negative_int(steps=state["steps"])
        own, average = self.averaged_weights, state["average"]
        if average.keys() != own.keys() or any(average[name].shape != own[name].shape for name in own):
            raise ValueError("the averaged weights are not those of this network")
        self._steps = state["steps"]
        for name, value in average.items():
            own[name].copy_(value)


def _put_back(run: Run) -> None:
    own = _REPLACED.pop(run.network, None)
    if own is not None:
        _write(run, own)


def _trained(run: Run) -> Iterator[tuple[str, Tensor]]:
    return ((name, value) for name, value in run.network.named_parameters() if value.requires_grad)


def _write(run: Run, values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in _trained(run):
            parameter.copy_(values[name])
