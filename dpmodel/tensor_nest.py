"""Nests of tensors and plain values, taken apart into named tensors and JSON values, and put together again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monitors.errors import CheckpointError


def pack_nest(value: Any, name: str, tensors: dict[str, Tensor], owner: str) -> Any:
    """JSON values for ``value``; its tensors go into ``tensors`` under names that begin with ``name``.

    Args:
        value: Mappings, lists and tuples of tensors, arrays, numbers, texts and None.
        name: Begin of the names of its tensors.
        tensors: Gets the tensors.
        owner: Whose value it is, for messages.

    Raises:
        CheckpointError: A part is of another type; it is named.

    Example:
        >>> tensors = {}
        >>> packed = pack_nest({"rate": 0.5, 3: torch.ones(2)}, "state", tensors, "the example")
        >>> sorted(tensors), unpack_nest(packed, tensors)["rate"]
        (['state.3'], 0.5)
    """
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        # JSON has keys of text only; an optimizer's are numbers.
        return {"mapping": [[key, pack_nest(item, f"{name}.{key}", tensors, owner)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        items = [pack_nest(item, f"{name}.{index}", tensors, owner) for index, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise CheckpointError(f"{owner} holds {name} of type {type(value).__name__}, which cannot be saved")


def unpack_nest(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The nest that ``pack_nest`` took apart; arrays come back as tensors."""
    if isinstance(value, list):
        return [unpack_nest(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "tuple" in value:
        return tuple(unpack_nest(item, tensors) for item in value["tuple"])
    return {key: unpack_nest(item, tensors) for key, item in value["mapping"]}
