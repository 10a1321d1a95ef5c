"""Nests of tensors and plain values: split into named tensors and JSON values, joined, and described."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from mechanisms.engines.outputs import same_leaf
from monitors import checks
from monitors.errors import CheckpointError, DataError


def pack_nest(value: Any, name: str, tensors: dict[str, Tensor], owner: str) -> Any:
    """JSON values for ``value``; its tensors go into ``tensors`` under names that start with ``name``.

    Args:
        value: Mappings, lists and tuples of tensors, arrays, numbers, strings and None.
        name: Start of the names of its tensors.
        tensors: Receives the tensors.
        owner: Owner of the value, for messages.

    Raises:
        CheckpointError: A part is of a different type; the message names it.

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
        # JSON keys are text; those of an optimizer are numbers.
        return {"mapping": [[key, pack_nest(item, f"{name}.{key}", tensors, owner)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        items = [pack_nest(item, f"{name}.{index}", tensors, owner) for index, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise CheckpointError(f"{owner} holds {name} of type {type(value).__name__}, which cannot be saved")


def unpack_nest(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The nest that ``pack_nest`` split; arrays come back as tensors.

    Raises:
        CheckpointError: ``value`` is not the output of ``pack_nest``, or names a tensor that ``tensors`` lacks.
    """
    if isinstance(value, list):
        return [unpack_nest(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    kind, content = next(iter(value.items())) if len(value) == 1 else (None, None)
    if kind == "tensor" and isinstance(content, str) and content in tensors:
        return tensors[content]
    if kind == "tuple" and isinstance(content, list):
        return tuple(unpack_nest(item, tensors) for item in content)
    if kind == "mapping" and isinstance(content, list) and all(map(_is_entry, content)):
        return {key: unpack_nest(item, tensors) for key, item in content}
    raise CheckpointError(f"the saved state holds {checks.shown(value)}, which is not a tensor, tuple or mapping of it")


def _is_entry(pair: Any) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], (str, int, float, bool, type(None)))


def join_outputs(parts: Sequence[Any], dims: Sequence[int | None] | None) -> Any:
    """Joins the outputs of a network for several batches, as if there had been one batch.

    Args:
        parts: At least one.
        dims: The dimension of each leaf that counts examples; leaves without one must be equal in all parts. None if
            the outputs cannot be divided into examples, which a single part need not be.

    Raises:
        DataError: A leaf is different for each batch, such as a cache or a loss that the network computes.

    Example:
        >>> join_outputs([{"logits": torch.zeros(2, 3)}, {"logits": torch.zeros(1, 3)}], [0])["logits"].shape
        torch.Size([3, 3])
    """
    if len(parts) == 1:
        return parts[0]
    leaves, forms = zip(*(tree_flatten(part) for part in parts), strict=True)
    columns = list(zip(*leaves, strict=True)) if all(form == forms[0] for form in forms) else []
    if dims is None or len(dims) != len(columns) or not all(map(_joinable, columns, dims)):
        what = "one number" if isinstance(parts[0], Tensor) else f"a {type(parts[0]).__name__} with a part"
        raise DataError(
            f"the network returns {what} that belongs to a whole batch (a cache, or a loss that it computes), so that "
            "the outputs of several batches cannot be joined; let it return tensors of one row per example, or give "
            "batch_size=len(inputs)"
        )
    joined = [column[0] if dim is None else torch.cat(column, dim) for column, dim in zip(columns, dims, strict=True)]
    return tree_unflatten(joined, forms[0])


def _joinable(column: Sequence[Any], dim: int | None) -> bool:
    return dim is not None or all(same_leaf(column[0], leaf) for leaf in column)


def as_tensors(value: Any, owner: str) -> Any:
    """Arrays, alone or in tuples, lists and mappings, as tensors; float64 arrays get torch's default type.

    Args:
        value: Tensors, NumPy arrays, or objects with ``to_numpy``; a mapping becomes a dict.
        owner: The caller, for messages.

    Raises:
        DataError: It contains anything else, such as strings; the message names it.

    Example:
        >>> as_tensors((np.zeros(2), torch.ones(1)), "predict")
        (tensor([0., 0.]), tensor([1.]))
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping):
        return {key: as_tensors(part, owner) for key, part in value.items()}
    if isinstance(value, (tuple, list)) and value:
        parts = [as_tensors(part, owner) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    array = value.to_numpy() if hasattr(value, "to_numpy") else value
    if not isinstance(array, (np.ndarray, np.generic)) or array.dtype.kind not in "biufc":
        what = f" of {array.dtype}" if isinstance(array, np.ndarray) else ""
        raise DataError(
            f"{owner} takes a tensor, or a tuple, list or dict of tensors, got {type(value).__name__}{what}; arrays of "
            "numbers are accepted too"
        )
    tensor = torch.from_numpy(np.array(array, order="C"))  # a copy: arrays may be read-only or have negative strides
    return tensor.to(torch.get_default_dtype()) if tensor.dtype == torch.float64 else tensor


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
    if isinstance(value, (tuple, list)):
        return ", ".join(describe_batch(part) for part in value)
    return "None" if value is None else f"a {type(value).__name__}"
