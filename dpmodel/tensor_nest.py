"""Nests of tensors and plain values: taken apart into named tensors and JSON values, joined, and described."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monitors.errors import CheckpointError, DataError


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


def join_batches(parts: Sequence[Any]) -> Any:
    """Nests of one form, joined along the first dimension of their tensors.

    Args:
        parts: At least one; a mapping becomes a dict.

    Raises:
        DataError: A part of a nest is no tensor.

    Example:
        >>> join_batches([{"logits": torch.zeros(2, 3)}, {"logits": torch.zeros(1, 3)}])["logits"].shape
        torch.Size([3, 3])
    """
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    if isinstance(first, Mapping):
        return {key: join_batches([part[key] for part in parts]) for key in first}
    if isinstance(first, (list, tuple)):
        joined = [join_batches(items) for items in zip(*parts, strict=True)]
        return joined if isinstance(first, list) else tuple(joined)
    raise DataError(f"a network's outputs must be tensors in tuples, lists and dicts, got {type(first).__name__}")


def require_tensors(value: Any, owner: str) -> None:
    """Refuse anything but tensors, alone or in tuples, lists and dicts.

    Raises:
        DataError: Names what was given, and by ``owner`` to whom.
    """
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else None
    if isinstance(value, Tensor):
        return
    if not parts:
        hint = "; torch.as_tensor makes one of an array" if isinstance(value, np.ndarray) else ""
        raise DataError(
            f"{owner} takes a tensor, or a tuple, list or dict of tensors, got {type(value).__name__}{hint}"
        )
    for part in parts:
        require_tensors(part, owner)


def describe_batch(value: Any) -> str:
    """Types and shapes of the examples in a batch.

    Example:
        >>> describe_batch({"ids": torch.zeros(2, 5, dtype=torch.int64), "mask": torch.zeros(2, 5)})
        'ids: int64 of shape (5,), mask: float32 of shape (5,)'
    """
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape[1:])}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {describe_batch(part)}" for key, part in value.items())
    return ", ".join(describe_batch(part) for part in value)
