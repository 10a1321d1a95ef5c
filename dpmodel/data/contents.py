"""The contents of a batch: dense tensors, in tuples, lists and dicts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from monitors.errors import DataError

#: Type of a part that is not a tensor -> what to do.
_REMEDIES: dict[type, str] = {
    np.ndarray: "Convert it: torch.as_tensor(array)",
}
_LEAVE_OUT = (
    "Leave it out of what the data set returns, or in a collate_fn: DataLoader(..., collate_fn=lambda examples: "
    "default_collate([(x, y) for x, _, y in examples]))"
)


def require_dense_tensors(value: Any, place: str = "example") -> None:
    """Refuse a batch that holds anything except dense tensors.

    Args:
        value: A nest of tuples, lists and dicts.
        place: Name of the place, for the message, which shows no private value.

    Raises:
        DataError: Names the place, the type found there, and the remedy.

    Example:
        >>> require_dense_tensors((torch.zeros(1, 6), ["patient 0"], torch.zeros(1)))
        Traceback (most recent call last):
            ...
        monitors.errors.DataError: example[1] is a str, but a batch must hold tensors only. Leave it out of what ...
    """
    if isinstance(value, Tensor):
        if value.layout is not torch.strided or value.is_nested:
            kind = "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
            raise DataError(
                f"{place} is a {kind} tensor, but examples must be dense to be isolated from each other. Convert it "
                "with to_dense(), for all data at once or per batch in a collate_fn"
            )
    elif isinstance(value, Mapping):
        for key, part in value.items():
            require_dense_tensors(part, f"{place}[{key!r}]")
    elif isinstance(value, (tuple, list)) and not _is_column(value):
        for index, part in enumerate(value):
            require_dense_tensors(part, f"{place}[{index}]")
    else:
        held = type(value[0] if isinstance(value, (tuple, list)) and value else value)
        remedy = next((_REMEDIES[base] for base in held.__mro__ if base in _REMEDIES), _LEAVE_OUT)
        raise DataError(f"{place} is a {held.__name__}, but a batch must hold tensors only. {remedy}")


def collated(collate_fn: Callable[[list[Any]], Any], examples: list[Any]) -> Any:
    """``collate_fn(examples)``.

    Raises:
        DataError: torch's ``default_collate`` cannot make a batch of them.

    Example:
        >>> collated(default_collate, [(torch.zeros(3), None)])
        Traceback (most recent call last):
            ...
        monitors.errors.DataError: the examples cannot be collated into a batch: default_collate: batch must contain ...
    """
    if collate_fn is not default_collate:
        return collate_fn(examples)
    try:
        return default_collate(examples)
    except (TypeError, RuntimeError, NotImplementedError) as error:
        raise DataError(
            f"the examples cannot be collated into a batch: {str(error).rstrip('.')}. Return tensors of one "
            "shape from the data set, or pass a collate_fn that makes such tensors"
        ) from error


def copied(value: Any) -> Any:
    """A copy of a nest with its tensors, arrays and mappings, to which a ``collate_fn`` may write.

    Example:
        >>> example = {"x": torch.zeros(2), "y": [1]}
        >>> copy_of_it = copied(example)
        >>> _ = copy_of_it.pop("x").add_(1), copy_of_it["y"].append(2)
        >>> example
        {'x': tensor([0., 0.]), 'y': [1]}
    """
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, MutableMapping):
        new = copy.copy(value)
        for key, part in value.items():
            new[key] = copied(part)
        return new
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(copied, value))
    return type(value)(copied(part) for part in value) if type(value) in (list, tuple) else value


def _is_column(value: Any) -> bool:
    """Whether a list holds one plain value per example, such as names, rather than the parts of an example."""
    return not any(isinstance(part, (Tensor, Mapping, tuple, list)) for part in value)
