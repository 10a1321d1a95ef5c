"""What an optimizer carries from one training into the next: momentum, and all else that it computed from gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from dpmodel.claims.snapshot import digest

#: Attributes of an optimizer that hold its parameters and their options.
_OPTIONS = ("param_groups", "defaults")


def carried_by(optimizer: Optimizer) -> int | None:
    """A digest of the numbers that ``optimizer`` keeps of earlier steps; None if it keeps none, or zeros only.

    The digest is valid in this process only.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
        >>> carried_by(optimizer) is None
        True
        >>> weight.grad = torch.ones(2)
        >>> optimizer.step()
        >>> carried_by(optimizer) is None
        False
    """
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    kept = [value for value in _numbers(optimizer, {id(optimizer)}) if id(value) not in known]
    if not any(map(_is_set, kept)):
        return None
    tensors = [value for value in kept if isinstance(value, Tensor)]
    return hash((digest(tensors), *(value for value in kept if not isinstance(value, Tensor))))


def _numbers(optimizer: Optimizer, seen: set[int]) -> Iterator[Any]:
    """All tensors, and the plain numbers of the state. A wrapper keeps those of the optimizer inside it."""
    yield from _inside(optimizer.state, seen)
    for name, value in vars(optimizer).items():
        if name not in (*_OPTIONS, "state"):
            yield from (found for found in _inside(value, seen) if isinstance(found, Tensor))


def _inside(value: Any, seen: set[int]) -> Iterator[Any]:
    if isinstance(value, (np.ndarray, np.number)):
        yield torch.as_tensor(value)
    elif isinstance(value, (Tensor, float, int, complex)):
        yield value
    elif id(value) in seen:
        return
    elif isinstance(value, (Mapping, list, tuple, set, frozenset, Optimizer)):
        seen.add(id(value))
        if isinstance(value, Optimizer):
            yield from _numbers(value, seen)
        else:
            for part in value.values() if isinstance(value, Mapping) else value:
                yield from _inside(part, seen)


def _is_set(value: Any) -> bool:
    return bool(value.detach().any()) if isinstance(value, Tensor) else value != 0
