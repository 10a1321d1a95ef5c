"""Outputs of a network: their tensors, and which dimension of each counts examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from mechanisms.engines.batch import map_tensors, outputs_of

#: Types of values that an output may hold besides tensors; they are compared with ``==``.
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)


def output_tensors(outputs: Any) -> list[Tensor]:
    """The tensors of ``outputs`` in order: in tuples, lists, dicts and registered containers such as ``ModelOutput``.

    Example:
        >>> [tuple(tensor.shape) for tensor in output_tensors((torch.zeros(2, 3), None, {"loss": torch.zeros(())}))]
        [(2, 3), ()]
    """
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]


def row_dimensions(outputs: Any, size: int, of_one: Any) -> list[int | None] | None:
    """For each leaf of ``outputs``, the dimension that counts examples; None for a leaf that all examples share.

    Args:
        outputs: The network's outputs for ``size`` examples.
        size: Number of examples, at least 2.
        of_one: The network's outputs for the first example alone.

    Returns:
        One entry per leaf; None if the outputs cannot be divided into examples, such as a number for the whole batch (a
        loss that the network computes) or an object with unknown parts (a cache).

    Example:
        >>> mask = torch.ones(2, 2)
        >>> of_one = (torch.zeros(1, 3), torch.zeros(5, 1), mask)
        >>> row_dimensions((torch.zeros(2, 3), torch.zeros(5, 2), mask), 2, of_one)
        [0, 1, None]
        >>> row_dimensions({"loss": torch.tensor(0.5)}, 2, {"loss": torch.tensor(0.4)}) is None
        True
    """
    (leaves, form), (others, other_form) = tree_flatten(outputs), tree_flatten(of_one)
    if form != other_form:
        return None
    found = [_counts(leaf, size, other) for leaf, other in zip(leaves, others, strict=True)]
    shared = zip(leaves, others, found, strict=True)
    return found if all(dim is not None or same_leaf(leaf, other) for leaf, other, dim in shared) else None


def first_dimensions(outputs: Any, size: int) -> list[int | None]:
    """Like ``row_dimensions``, assuming that every first dimension of length ``size`` counts examples."""
    return [0 if isinstance(leaf, Tensor) and leaf.shape[:1] == (size,) else None for leaf in tree_leaves(outputs)]


def has_rows_only(outputs: Any, size: int) -> bool:
    """Whether each tensor with a gradient holds one row per example, and all other leaves are plain values.

    Example:
        >>> has_rows_only((torch.zeros(2, 3), None), 2), has_rows_only(torch.zeros((), requires_grad=True), 2)
        (True, False)
    """
    dims = first_dimensions(outputs, size)
    return all(
        dim is not None or (not leaf.requires_grad if isinstance(leaf, Tensor) else isinstance(leaf, _PLAIN))
        for leaf, dim in zip(tree_leaves(outputs), dims, strict=True)
    )


def dimensions_of(network: nn.Module, x: Any) -> list[int | None] | None:
    """``row_dimensions`` of the network's outputs.

    Args:
        network: The network; it is called twice, on one and on two examples.
        x: Inputs of at least one example.
    """
    one = map_tensors(lambda value: value[:1], x)
    two = map_tensors(lambda value: torch.cat([value, value]), one)
    return row_dimensions(outputs_of(network, two), 2, outputs_of(network, one))


def each_row(
    function: Callable[[Any, Any], Tensor],
    outputs: Any,
    dims: Sequence[int | None],
    targets: Any,
    *,
    vectorised: bool,
) -> Tensor:
    """Apply ``function(outputs, targets)`` to each example, as a batch of one, and stack the results.

    Args:
        function: Returns a tensor.
        outputs: The network's outputs.
        dims: The dimension of each leaf that counts examples; leaves without one are passed unchanged.
        targets: Nested tensors of shape (B, ...).
        vectorised: Whether to call ``function`` once under ``torch.func.vmap`` instead of B times.
    """
    leaves, form = tree_flatten(outputs)
    labels, label_form = tree_flatten(targets)
    counted = [dim for dim in dims if dim is not None]
    columns = [leaf.movedim(dim, 0) for leaf, dim in zip(leaves, dims, strict=True) if dim is not None]

    def of_one(*values: Tensor) -> Tensor:
        own = iter(value.unsqueeze(dim) for value, dim in zip(values, counted, strict=False))
        output = [leaf if dim is None else next(own) for leaf, dim in zip(leaves, dims, strict=True)]
        target = [value.unsqueeze(0) for value in values[len(counted) :]]
        return function(tree_unflatten(output, form), tree_unflatten(target, label_form))

    if vectorised:
        found: Tensor = torch.func.vmap(of_one, randomness="different")(*columns, *labels)
        return found
    return torch.stack([of_one(*row) for row in zip(*columns, *labels, strict=True)])


def _counts(leaf: Any, size: int, other: Any) -> int | None:
    if not isinstance(leaf, Tensor) or not isinstance(other, Tensor) or leaf.dim() != other.dim():
        return None
    for dim in range(leaf.dim()):
        others = [at for at in range(leaf.dim()) if at != dim]
        equal = all(leaf.shape[at] == other.shape[at] for at in others)
        if equal and leaf.shape[dim] == size and other.shape[dim] == 1:
            return dim
    return None


def same_leaf(left: Any, right: Any) -> bool:
    """Whether two leaves are equal tensors, equal plain values, or the same object."""
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left.shape == right.shape and bool(torch.equal(left, right))
    return left is right or (type(left) is type(right) and isinstance(left, _PLAIN) and left == right)
