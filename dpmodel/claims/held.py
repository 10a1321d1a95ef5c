"""The tensors and layers that a network, a loss or a data set holds, wherever it keeps them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from torch import Tensor, nn

from dpmodel.data.reachable import reachable


@dataclass
class Held:
    """What was found, each object once.

    Attributes:
        modules: The modules.
        tensors: Their parameters and buffers, and other tensors.
    """

    modules: list[nn.Module] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    _seen: set[int] = field(default_factory=set, repr=False)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.tensors)

    def add(self, value: Any) -> None:
        """Include a tensor, or a module with its parts; ignore anything else."""
        if isinstance(value, Tensor):
            self._add(value, self.tensors)
        elif isinstance(value, nn.Module) and id(value) not in self._seen:
            for module in value.modules():
                self._add(module, self.modules)
                for tensor in chain(module.parameters(recurse=False), module.buffers(recurse=False)):
                    self._add(tensor, self.tensors)

    def _add(self, value: Any, to: list[Any]) -> None:
        if id(value) not in self._seen:
            self._seen.add(id(value))
            to.append(value)


def parts_of(network: nn.Module) -> Held:
    """What the modules of ``network`` hold directly, and in lists and dicts that ``named_modules`` does not show.

    Example:
        >>> network = nn.Linear(2, 1)
        >>> network.hidden = [nn.Linear(3, 3)]
        >>> [tuple(value.shape) for value in parts_of(network)]
        [(1, 2), (1,), (3, 3), (3,)]
    """
    found = Held()
    found.add(network)
    for module in found.modules:  # it grows
        for value in _kept_aside(module):
            found.add(value)
    return found


def held_by(*holders: Any) -> Held:
    """What any objects hold: the parts of modules, and all that attributes, containers and closures lead to.

    Example:
        >>> encoder = nn.Linear(3, 3)
        >>> len(held_by(lambda x, encoder=encoder: encoder(x)).tensors)
        2
    """
    found = Held()
    for holder in holders:
        parts = parts_of(holder) if isinstance(holder, nn.Module) else Held()
        # All parts of modules, since a search visits a limited number.
        for value in (*parts.modules, *parts.tensors, *reachable(holder, data=True)):
            found.add(value)
    return found


def place_of(value: Tensor) -> int | None:
    """The memory in which a tensor lies: views and tensors made by ``detach`` share it. None if it has none."""
    try:
        return int(value.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError, ValueError):  # sparse tensors and lazy parameters have none
        return None


def own_parameters(layer: nn.Module) -> list[nn.Parameter]:
    """The parameters of a module without those of its submodules, except those that a parametrization computes with."""
    parametrizations = layer._modules.get("parametrizations")
    computed = () if parametrizations is None else parametrizations.parameters()
    return [*layer.parameters(recurse=False), *computed]


def _kept_aside(module: nn.Module) -> Iterator[Any]:
    for name, value in vars(module).items():
        if name in ("_parameters", "_buffers", "_modules"):
            continue
        if isinstance(value, (list, tuple)):
            yield from value
        elif isinstance(value, Mapping):
            yield from value.values()
        else:
            yield value
