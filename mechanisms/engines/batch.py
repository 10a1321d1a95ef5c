"""One drawn sample of the data, and how to take it apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

#: What PyTorch says where something is to be differentiated that has no graph.
_NO_GRAPH = "does not require grad"


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Apply ``function`` to each tensor of a nest of tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: map_tensors(function, part) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        parts = [map_tensors(function, part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    raise TypeError(f"a batch must be made of tensors in tuples, lists and dicts, got {type(value).__name__}")


def first_tensor(value: Any) -> Tensor:
    """The first tensor of a nest of tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return value
    parts = list(value.values()) if isinstance(value, dict) else list(value)
    return first_tensor(parts[0])


def all_tensors(value: Any) -> list[Tensor]:
    """The tensors of a nest of tuples, lists and dicts, in order."""
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(keep, value)
    return found


def costs_a_wait(value: Tensor) -> bool:
    """Whether a look at the numbers of ``value`` makes the host wait for the device that computes them."""
    return value.device.type != "cpu"


def call_network(network: nn.Module | Callable[..., Tensor], x: Any) -> Any:
    """``network(x)``; a tuple or list is spread over positional arguments, a dict over named ones."""
    if isinstance(x, dict):
        return network(**x)
    return network(*x) if isinstance(x, (tuple, list)) else network(x)


def lacks_graph(error: RuntimeError) -> bool:
    """Whether something was differentiated that was computed without gradients."""
    return _NO_GRAPH in str(error)


def outputs_of(network: nn.Module | Callable[..., Tensor], x: Any) -> Any:
    """What ``call_network`` gives, without the graph of autograd.

    A network that differentiates in its forward pass (a physics-informed one, a gradient penalty) cannot run without
    gradients; its outputs are detached.

    Example:
        >>> def slope(t):
        ...     t = t.detach().requires_grad_(True)
        ...     return torch.autograd.grad((t**2).sum(), t, create_graph=True)[0]
        >>> outputs_of(slope, torch.tensor([3.0]))
        tensor([6.])
    """
    try:
        with torch.no_grad():
            return call_network(network, x)
    except RuntimeError as error:
        if not lacks_graph(error):
            raise
    with torch.enable_grad():
        found = call_network(network, x)
    return tree_map(lambda part: part.detach() if isinstance(part, Tensor) else part, found)


@dataclass(frozen=True)
class Batch:
    """Inputs and targets of one step; the first dimension of every tensor counts examples.

    Args:
        x: Inputs: a tensor, or a tuple, list or dict of tensors, each of shape (B, ...).
        y: Targets, likewise.
        group_ids: None when each example is a unit of its own; else the unit of each example, int64 of shape (B,) with
            values in [0, ``units``).
        units: Number of units; required with ``group_ids`` (units without members count too).
    """

    x: Any
    y: Any
    group_ids: Tensor | None = None
    units: int | None = None

    @property
    def size(self) -> int:
        """Number of drawn examples, possibly 0."""
        return first_tensor(self.x).shape[0]

    @property
    def num_units(self) -> int:
        """Number of clipped units."""
        return self.size if self.group_ids is None else int(self.units or 0)

    def select(self, rows: Tensor | slice) -> Batch:
        """The batch of ``rows`` alone; group ids are kept as they are."""
        ids = None if self.group_ids is None else self.group_ids[rows]
        return Batch(map_tensors(lambda t: t[rows], self.x), map_tensors(lambda t: t[rows], self.y), ids, self.units)
