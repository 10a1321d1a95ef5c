"""Features of a batch, where the network sees each example alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mechanisms.engines.batch import Batch, first_tensor, map_tensors, outputs_of, own_copy
from mechanisms.engines.isolation.isolated import isolated
from mechanisms.engines.state.pass_boundary import PassBoundary
from monitors.errors import DataError, DPModelError


class ExampleFeatures:
    """Computes the features of each example from that example and the network alone, isolated as in training.

    The network runs once for the whole batch, under ``isolated``, and sees one example, as a batch of one. If it cannot
    run this way, because its control flow depends on values or for want of a batching rule, it runs once for each
    example. Which of the two is found out with made-up inputs, before it sees an example. What the network remembers is
    undone after each pass.

    Args:
        network: In evaluation mode.

    Example:
        >>> ExampleFeatures(nn.Softmax(0))(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        tensor([[1., 1.],
                [1., 1.]])
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._isolated: bool | None = None
        self._why_not: str | None = None
        self._isolating = PassBoundary(remedy="")
        self._showing = PassBoundary(by_value=True, remedy="")

    def __call__(self, x: Any) -> Tensor:
        """Features of the examples of ``x``, one row each.

        Raises:
            DataError: The network does not take a single example, or gives something other than one row of numbers.
            UnprotectedUpdateError: The network keeps state that cannot be undone, or writes to files.
        """
        if self._isolated is None:
            self._isolated, self._why_not = self._tried(map_tensors(_made_up, x))
        if self._isolated:
            return self._pass(self._isolating, self._of_batch, x)
        found = self.shown(map_tensors(lambda part: part[:1], x))
        if self._why_not is not None:
            warnings.warn(self._why_not, UserWarning, stacklevel=4)
            self._why_not = None
        rows = (map_tensors(lambda part: part[row : row + 1], x) for row in range(1, len(first_tensor(x))))  # noqa: B023
        parts = [found, *(require_shape(self.shown(row), found.shape) for row in rows)]
        return torch.cat(parts)

    @property
    def is_isolated(self) -> bool:
        """Whether the network runs once for a batch; known after the first batch."""
        return bool(self._isolated)

    def shown(self, x: Any) -> Tensor:
        """Features by the network that sees all of ``x`` as one batch. Nothing of it remains in the network.

        Raises:
            DataError, UnprotectedUpdateError: As above.
        """
        return self._pass(self._showing, partial(features_of, self.network), x)

    def _pass(self, boundary: PassBoundary, compute: Callable[[Any], Tensor], x: Any) -> Tensor:
        boundary.begin_step(self.network)
        own = map_tensors(own_copy, x)
        with boundary.around(Batch(own, ())):
            with boundary.user_code():
                found = compute(own)
            features = found.clone()  # a network may return the same memory each time
            del found
        return features

    def _of_batch(self, x: Any) -> Tensor:
        return isolated(lambda example: features_of(self.network, example).squeeze(0), x)

    def _tried(self, made_up: Any) -> tuple[bool, str | None]:
        """Whether the network can be isolated, or why not."""
        try:
            self._pass(self._isolating, self._of_batch, made_up)
        except Exception as error:
            reason = str(error.__cause__ or error).partition(". ")[0]
            return False, f"{type(self.network).__name__} runs once for each example, which takes longer: {reason}"
        return True, None


#: Errors of a network that does not take its inputs.
_FAULTS = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)


def features_of(network: nn.Module, x: Any) -> Tensor:
    """The outputs of ``network`` for a batch, which must be one tensor of floats with one row per example.

    Raises:
        DataError: The network does not take the inputs, or its outputs are anything else.
    """
    count = len(first_tensor(x))
    try:
        found = outputs_of(network, x)
    except _FAULTS as error:
        if isinstance(error, DPModelError):
            raise
        what = f"inputs of shape {tuple(first_tensor(x).shape)}{', one example' if count == 1 else ''}"
        raise DataError(f"{type(network).__name__} does not take {what}: {error}") from error
    if not isinstance(found, Tensor) or not found.is_floating_point() or found.dim() < 2 or len(found) != count:
        given = f"{found.dtype} of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise DataError(
            f"{type(network).__name__} must give one tensor of floats with one row per example, got {given} for "
            f"{count} examples. Wrap it in a module whose forward selects and flattens the features"
        )
    return found


def require_shape(features: Tensor, shape: torch.Size) -> Tensor:
    """``features``, whose rows must have the shape of those in a tensor of the given ``shape``.

    Raises:
        DataError: They have a different one.
    """
    if features.shape[1:] != shape[1:]:
        shapes = f"{tuple(shape[1:])} and {tuple(features.shape[1:])}"
        raise DataError(f"the features of all examples must have the same shape, got {shapes}")
    return features


def _made_up(value: Tensor) -> Tensor:
    """Two examples like those of ``value``."""
    shape = (2, *value.shape[1:])
    random = value.is_floating_point() or value.is_complex()
    return torch.rand(shape, dtype=value.dtype, device=value.device) if random else value.new_zeros(shape)
