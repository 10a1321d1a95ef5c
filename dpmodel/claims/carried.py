"""What an optimizer carries from one training into the next: momentum, and all else that it computed from gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from dpmodel.claims.snapshot import digest

#: Attributes of an optimizer that hold its parameters and their options.
_OPTIONS = ("param_groups", "defaults")

#: Options that schedules change by the step alone.
_SCHEDULED = ("lr", "initial_lr", "min_lr", "max_lr", "base_momentum", "max_momentum", "momentum", "betas")

#: Numbers among the options of each optimizer before its first private training. Some optimizers write to them what
#: they computed from gradients, such as a step size (Prodigy, D-Adaptation).
_BEFORE: WeakKeyDictionary[Optimizer, dict[str, str]] = WeakKeyDictionary()


def note_options(optimizer: Optimizer) -> None:
    """Call it before each private training: what the optimizer writes to its options from then on is carried."""
    _BEFORE.setdefault(optimizer, _numbers_set(optimizer))


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
    now = _numbers_set(optimizer)
    written = tuple(item for item in now.items() if item not in _BEFORE.get(optimizer, now).items())
    if not written and not any(map(_is_set, kept)):
        return None
    tensors = [value for value in kept if isinstance(value, Tensor)]
    return hash((digest(tensors), written, *(value for value in kept if not isinstance(value, Tensor))))


def _numbers_set(optimizer: Optimizer) -> dict[str, str]:
    """Options and attributes of the optimizer, and of one inside it, that hold fractions, tensors or arrays."""
    ahead, found = [("", optimizer)], dict[str, str]()
    seen = {id(optimizer)}
    while ahead:
        place, one = ahead.pop()
        tables = [vars(one), *one.param_groups]
        for number, table in enumerate(tables):
            for name, value in table.items():
                if isinstance(value, Optimizer) and id(value) not in seen:
                    seen.add(id(value))
                    ahead.append((f"{place}.{name}", value))
                elif name not in (*_OPTIONS, "state", "params", *_SCHEDULED):
                    kept = [part for part in _inside(value, set()) if isinstance(part, (float, Tensor))]
                    exact = [digest([part]) if isinstance(part, Tensor) else part for part in kept]
                    found |= {f"{place}.{number}.{name}": repr(exact)} if kept else {}
    return found


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
