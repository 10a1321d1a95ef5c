"""One drawn sample of the data, and helpers to take it apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

if TYPE_CHECKING:
    from mechanisms.engines.views import Views

#: Part of PyTorch's error for differentiating something without a graph.
_NO_GRAPH = "does not require grad"


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Apply ``function`` to each tensor in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: map_tensors(function, part) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        parts = [map_tensors(function, part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    raise TypeError(f"a batch must consist of tensors in tuples, lists and dicts, got {type(value).__name__}")


def first_tensor(value: Any) -> Tensor:
    """The first tensor in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return value
    parts = list(value.values()) if isinstance(value, dict) else list(value)
    return first_tensor(parts[0])


def all_tensors(value: Any) -> list[Tensor]:
    """The tensors in nested tuples, lists and dicts, in order."""
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(keep, value)
    return found


def own_copy(value: Tensor) -> Tensor:
    """The values in memory of their own: from a view, a network could reach the rest of the batch, or change it."""
    return value.clone(memory_format=torch.contiguous_format) if value.layout == torch.strided else value.clone()


def costs_a_wait(value: Tensor) -> bool:
    """Whether reading the values of ``value`` makes the host wait for the device that computes them."""
    return value.device.type != "cpu"


def call_network(network: nn.Module | Callable[..., Tensor], x: Any) -> Any:
    """``network(x)``; tuples and lists are unpacked into positional arguments, dicts into keyword arguments."""
    if isinstance(x, dict):
        return network(**x)
    return network(*x) if isinstance(x, (tuple, list)) else network(x)


def lacks_graph(error: RuntimeError) -> bool:
    """Whether the error says that something computed without gradients was differentiated."""
    return _NO_GRAPH in str(error)


def outputs_of(network: nn.Module | Callable[..., Tensor], x: Any) -> Any:
    """The result of ``call_network``, without an autograd graph.

    A network that differentiates in its forward pass (physics-informed, or with a gradient penalty) cannot run without
    gradients; its outputs are detached instead.

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
        group_ids: None if each example is a unit; else the unit of each example, int64 of shape (B,) with values in
            [0, ``units``).
        units: Number of units, including those without members; required with ``group_ids``.
        real: None if every unit counts; else bool of shape (units,), False for fillers. Fillers have weight 0 and come
            last; they make up for missing rows and units if shapes are static (see ``static_chunks``).
        fillers: Number of fillers among the units.
        views: Random views that take the place of the examples, still to be made; None: the examples as they are.
        multiplicity: Number K of views of each example, if they have been made: tensors of ``x`` are (B, K, ...). None:
            ``x`` holds the examples themselves.
    """

    x: Any
    y: Any
    group_ids: Tensor | None = None
    units: int | None = None
    real: Tensor | None = None
    fillers: int = 0
    views: Views | None = None
    multiplicity: int | None = None

    @property
    def size(self) -> int:
        """Number of rows: drawn examples, possibly 0, and fillers."""
        return first_tensor(self.x).shape[0]

    @property
    def num_units(self) -> int:
        """Number of clipped units."""
        return self.size if self.group_ids is None else int(self.units or 0)

    def select(self, rows: Tensor | slice) -> Batch:
        """The batch of only these ``rows``, none of which may be a filler; group ids are not renumbered."""
        return replace(
            self.with_examples(map_tensors(lambda t: t[rows], self.x), map_tensors(lambda t: t[rows], self.y)),
            group_ids=None if self.group_ids is None else self.group_ids[rows],
            units=self.units,
            views=None if self.views is None else self.views.select(rows),
        )

    def with_examples(self, x: Any, y: Any) -> Batch:
        """A batch of other examples with as many views, each of which is a unit."""
        return Batch(x, y, multiplicity=self.multiplicity)

    def made(self) -> Batch:
        """The batch with its views in place of its examples, if it has any."""
        if self.views is None:
            return self
        return replace(self, x=self.views.of(self.x), views=None, multiplicity=self.views.multiplicity)

    @property
    def rows(self) -> Any:
        """The inputs as the network takes them: each view is a row."""
        return self.rows_of(self.x)

    def rows_of(self, x: Any) -> Any:
        """Inputs of examples of this batch, ``x`` or a part of it, as the network takes them."""
        return x if self.multiplicity is None else map_tensors(lambda t: t.flatten(0, 1), x)

    def targets_of(self, y: Any) -> Any:
        """Targets of examples of this batch, ``y`` or a part of it, for each row that the network takes."""
        views = self.multiplicity
        if views is None:
            return y
        return map_tensors(lambda t: t.unsqueeze(1).expand(-1, views, *t.shape[1:]).flatten(0, 1), y)

    def mean_over_views(self, losses: Tensor) -> Tensor:
        """Losses of examples of this batch from those of the rows that the network takes."""
        return losses if self.multiplicity is None else losses.unflatten(0, (-1, self.multiplicity)).mean(1)

    def loss_sum(self, losses: Tensor) -> Tensor:
        """Sum of the losses (B,) of the rows, without those of fillers."""
        if self.real is None:
            return losses.sum()
        rows = self.real if self.group_ids is None else self.real[self.group_ids]
        return torch.where(rows, losses, torch.zeros_like(losses)).sum()
