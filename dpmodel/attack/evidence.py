"""What an attacker sees of one network: its outputs, those of reference networks, and the network as a black box."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dpmodel.attack.pool import Pool
from mechanisms.engines.losses import ExampleLosses
from monitors.errors import DataError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

#: Largest size of a logit of a probability, beyond which float32 says nothing.
_LARGEST_LOGIT = 100.0


@dataclass(frozen=True)
class Reference:
    """A network of the attacker.

    Args:
        outputs: Its outputs for all examples of the pool.
        included: Which attacked examples it was trained on.
    """

    outputs: Tensor
    included: Bools


@dataclass(frozen=True)
class Evidence:
    """Everything that an attack may use.

    Args:
        pool: The examples.
        outputs: Outputs of the attacked network for all of them.
        loss_fn: Its loss.
        network: Gives the attacked network, in evaluation mode.
        references: Networks of the attacker.
    """

    pool: Pool
    outputs: Tensor
    loss_fn: Any
    network: Callable[[], nn.Module]
    references: tuple[Reference, ...] = ()

    @cached_property
    def losses(self) -> Floats:
        """Loss of each attacked example; a loss that is not finite counts as the largest one."""
        losses = ExampleLosses(self.loss_fn)(self.outputs[: self.pool.size], self.pool.targets[: self.pool.size].cpu())
        found = losses.detach().double().numpy()
        finite = found[np.isfinite(found)]
        largest = float(finite.max()) if finite.size else 0.0
        bounded: Floats = np.where(np.isfinite(found), found, largest)
        return bounded

    @property
    def confidences(self) -> Floats:
        """Logit of the probability of each attacked example's class."""
        return self._logits(self.outputs)

    @property
    def included(self) -> Bools:
        """Which reference was trained on which attacked example, shape (references, attacked)."""
        return np.array([reference.included for reference in self.references])

    @property
    def reference_confidences(self) -> Floats:
        """``confidences`` of the references, shape (references, attacked)."""
        return np.array([self._logits(reference.outputs) for reference in self.references])

    def probabilities(self) -> tuple[Floats, Floats]:
        """Probability of each example's class: of the attacked network, shape (all,); of the references."""
        everything = (self.outputs, *(reference.outputs for reference in self.references))
        found = [np.exp(-np.logaddexp(0.0, -class_logits(part, self.pool.targets))) for part in everything]
        return found[0], np.array(found[1:])

    def _logits(self, outputs: Tensor) -> Floats:
        size = self.pool.size
        return class_logits(outputs[:size], self.pool.targets[:size])


def class_logits(outputs: Tensor, targets: Tensor) -> Floats:
    """The logit ``log(p / (1 - p))`` of the probability ``p`` of each target, shape (N,).

    It is computed from the scores, ``z_y - log sum_{c != y} exp z_c``, so that it is exact for probabilities near 1.

    Args:
        outputs: Scores, shape (N, classes), whose softmax is the probability.
        targets: Classes, int64 of shape (N,).

    Raises:
        DataError: Outputs or targets have another form.

    Example:
        >>> class_logits(torch.tensor([[0.0, 0.0], [3.0, 0.0]]), torch.tensor([0, 0])).tolist()
        [0.0, 3.0]
    """
    require_classes(outputs, targets)
    scores, targets = outputs.detach().cpu().double(), targets.cpu().unsqueeze(1)
    own = scores.gather(1, targets).squeeze(1)
    others = scores.scatter(1, targets, -torch.inf).logsumexp(dim=1)
    found: Floats = (own - others).nan_to_num(0.0).clamp(-_LARGEST_LOGIT, _LARGEST_LOGIT).numpy()
    return found


def require_classes(outputs: Any, targets: Tensor) -> None:
    """Refuse outputs that are not one score per class, and targets that are not classes.

    Raises:
        DataError: They are not.
    """
    scores = isinstance(outputs, Tensor) and outputs.dim() == 2 and outputs.shape[1] >= 2
    if scores and targets.dim() == 1 and not targets.is_floating_point():
        lowest, highest = int(targets.min()), int(targets.max())
        if lowest < 0 or highest >= outputs.shape[1]:
            raise DataError(
                f"the network gives {outputs.shape[1]} scores, so classes must lie between 0 and "
                f"{outputs.shape[1] - 1}; the targets lie between {lowest} and {highest}"
            )
    if not scores or targets.dim() != 1 or targets.is_floating_point():
        form = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise DataError(
            "this attack needs a network that gives one score per class, shape (B, classes), and targets that are "
            f"classes; got outputs {form} and targets {tuple(targets.shape)} of {targets.dtype}. Use loss_threshold"
        )
