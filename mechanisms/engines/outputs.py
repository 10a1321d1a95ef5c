"""What a network returns: its tensors, and which of them hold one row per example."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from mechanisms.engines.batch import call_network, map_tensors

#: Values that an output may hold beside its tensors; they are compared with ``==``.
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)


def output_tensors(outputs: Any) -> list[Tensor]:
    """The tensors of ``outputs`` in order: of tuples, lists, dicts and registered containers such as ``ModelOutput``.

    Example:
        >>> [tuple(tensor.shape) for tensor in output_tensors((torch.zeros(2, 3), None, {"loss": torch.zeros(())}))]
        [(2, 3), ()]
    """
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]


def row_leaves(outputs: Any, size: int, of_one: Any) -> list[bool] | None:
    """For each leaf of ``outputs``, whether its first dimension counts examples; the others are equal for all examples.

    Args:
        outputs: What the network returns for ``size`` examples, two or more.
        size: The number of examples.
        of_one: What it returns for the first of them alone.

    Returns:
        One bool per leaf, or None if the outputs cannot be divided into examples: a number for the whole batch (a
        loss that the network computes), or an object whose parts are not known (a cache).

    Example:
        >>> mask = torch.ones(2, 2)
        >>> row_leaves((torch.zeros(2, 3), mask, None), 2, (torch.zeros(1, 3), mask, None))
        [True, False, False]
        >>> row_leaves({"loss": torch.tensor(0.5)}, 2, {"loss": torch.tensor(0.4)}) is None
        True
    """
    (leaves, form), (others, other_form) = tree_flatten(outputs), tree_flatten(of_one)
    if form != other_form:
        return None
    found = [_has_rows(leaf, size) and _has_rows(other, 1) for leaf, other in zip(leaves, others, strict=True)]
    shared = [pair for pair, rows in zip(zip(leaves, others, strict=True), found, strict=True) if not rows]
    return found if all(same_leaf(*pair) for pair in shared) else None


def rows_of_outputs(network: nn.Module, x: Any) -> list[bool] | None:
    """For each leaf of the network's outputs, whether its first dimension counts examples; None as of ``row_leaves``.

    Args:
        network: Called twice, on one and on two examples.
        x: Inputs of at least one example.
    """
    one = map_tensors(lambda value: value[:1], x)
    two = map_tensors(lambda value: torch.cat([value, value]), one)
    return row_leaves(call_network(network, two), 2, call_network(network, one))


def each_row(
    function: Callable[[Any, Any], Tensor], outputs: Any, rows: Sequence[bool], targets: Any, *, vectorised: bool
) -> Tensor:
    """``function(outputs, targets)`` of each example, stacked; both hold one example, as a batch of one.

    Args:
        function: Returns a tensor.
        outputs: What the network returns.
        rows: Which leaves hold one row per example; the others are passed on as they are.
        targets: A nest of tensors of shape (B, ...).
        vectorised: Whether to call it once under ``torch.func.vmap`` instead of B times.
    """
    leaves, form = tree_flatten(outputs)
    labels, label_form = tree_flatten(targets)
    mapped = [leaf for leaf, has_rows in zip(leaves, rows, strict=True) if has_rows]

    def of_one(*values: Tensor) -> Tensor:
        ones = [value.unsqueeze(0) for value in values]
        own = iter(ones[: len(mapped)])
        output = [next(own) if has_rows else leaf for leaf, has_rows in zip(leaves, rows, strict=True)]
        return function(tree_unflatten(output, form), tree_unflatten(ones[len(mapped) :], label_form))

    columns = (*mapped, *labels)
    if vectorised:
        found: Tensor = torch.func.vmap(of_one, randomness="different")(*columns)
        return found
    return torch.stack([of_one(*row) for row in zip(*columns, strict=True)])


def _has_rows(leaf: Any, size: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == size


def same_leaf(left: Any, right: Any) -> bool:
    """Whether two leaves of outputs are equal tensors, equal plain values, or one object."""
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left.shape == right.shape and bool(torch.equal(left, right))
    return left is right or (type(left) is type(right) and isinstance(left, _PLAIN) and left == right)
