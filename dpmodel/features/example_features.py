"""Features of a batch, where the network sees each example alone."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from mechanisms.engines.batch import first_tensor, map_tensors, outputs_of
from mechanisms.engines.isolation.isolated import isolated
from mechanisms.engines.probing import preserve_state
from monitors.errors import DataError


class ExampleFeatures:
    """Computes the features of each example from that example and the network alone.

    The network runs once for the whole batch, under ``isolated``, and sees one example, as a batch of one. A network
    that cannot run this way (its control flow depends on values) runs once for each example. What the network remembers
    is undone after each run, so no example can reach the features of another.

    Args:
        network: In evaluation mode.

    Example:
        >>> ExampleFeatures(nn.Softmax(0))(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        tensor([[1., 1.],
                [1., 1.]])
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._one_by_one = False

    def __call__(self, x: Any) -> Tensor:
        """Features of the examples of ``x``, one row each.

        Raises:
            DataError: The network does not take a single example, or gives something other than one row of numbers.
        """
        if not self._one_by_one:
            try:
                with preserve_state(self._network):
                    return isolated(lambda example: features_of(self._network, example).squeeze(0), x)
            except Exception as error:
                found = self._of_each(x)  # if the network is at fault, this raises its own error
                self._one_by_one = True
                reason = str(error.__cause__ or error).partition(". ")[0]
                warnings.warn(
                    f"{type(self._network).__name__} runs once for each example, which takes longer: {reason}",
                    UserWarning,
                    stacklevel=4,
                )
                return found
        return self._of_each(x)

    def _of_each(self, x: Any) -> Tensor:
        found = []
        for row in range(len(first_tensor(x))):
            with preserve_state(self._network):
                found.append(features_of(self._network, map_tensors(lambda part: part[row : row + 1], x)))  # noqa: B023
        return torch.cat(found)


def features_of(network: nn.Module, x: Any) -> Tensor:
    """The outputs of ``network`` for a batch, which must be one tensor of floats with one row per example.

    Raises:
        DataError: The network does not take the inputs, or its outputs are anything else.
    """
    count = len(first_tensor(x))
    try:
        found = outputs_of(network, x)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        what = "one example at a time" if count == 1 else f"inputs of shape {tuple(first_tensor(x).shape)}"
        raise DataError(f"{type(network).__name__} does not take {what}: {error}") from error
    if not isinstance(found, Tensor) or not found.is_floating_point() or found.dim() < 2 or len(found) != count:
        given = f"{found.dtype} of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise DataError(
            f"{type(network).__name__} must give one tensor of floats with one row per example, got {given} for "
            f"{count} examples. Wrap it in a module whose forward selects and flattens the features"
        )
    return found
