"""Batches for evaluation and prediction: every example once, in order, as tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    default_collate,
)

from dpmodel.data.in_memory import InMemoryDataset
from dpmodel.data.loader import Pair, PrivateLoader, dense_pair, split_pair
from dpmodel.data.row_choice import chosen_rows, drawn_from, draws_all
from dpmodel.saving.nest import as_tensors, join_outputs
from mechanisms.engines.batch import all_tensors, first_tensor, map_tensors, outputs_of
from mechanisms.engines.outputs import dimensions_of
from mechanisms.engines.probing import inference
from monitors.errors import DataError
from monitors.signatures import signature

#: Largest default number of examples per call of the network.
INFERENCE_BATCH = 1000

NO_BATCH = "predict received no batch: the loader or the data set is empty"


def evaluation_batches(loader: Any, batch_size: int = INFERENCE_BATCH) -> Iterable[Pair]:
    """Each example of ``loader`` once, as ``(inputs, targets)``.

    Args:
        loader: A ``DataLoader``, a data set with a length, a pair ``(inputs, targets)`` of tensors, arrays or nests of
            them, or an iterable of batches.
        batch_size: Examples per batch if the loader does not say.

    Raises:
        DataError: It is none of these, or does not hold tensors and arrays.
    """
    if _is_array(loader) or isinstance(loader, Mapping):
        raise DataError(f"evaluate needs targets too: evaluate((inputs, targets)), got only {type(loader).__name__}")
    if isinstance(loader, PrivateLoader):
        return loader.in_order(batch_size)
    if isinstance(loader, DataLoader):
        batches = loader.batch_sampler
        plain = type(batches) is BatchSampler and draws_all(batches.sampler) and loader.collate_fn is default_collate
        if plain and isinstance(loader.dataset, InMemoryDataset):
            return PrivateLoader(loader.dataset, 1).in_order(batch_size)
        return (_pair(batch) for batch in loader)
    if _is_pair(loader):
        pair: Pair = tuple(as_tensors(part, "eval") for part in loader)
        return _slices(pair, batch_size)
    if isinstance(loader, tuple) and len(loader) > 2 and all(map(_is_array, loader)):
        raise DataError(
            f"a pair (inputs, targets) was expected, got {len(loader)} tensors; put the inputs of a network that takes "
            "several into a tuple of their own: ((first, second), targets)"
        )
    if isinstance(loader, IterableDataset):
        return evaluation_batches(DataLoader(loader, batch_size))
    if hasattr(loader, "__getitem__") and hasattr(loader, "__len__"):
        return PrivateLoader(loader, 1).in_order(batch_size) if len(loader) else ()
    if isinstance(loader, Iterable):
        return (_pair(batch) for batch in loader)
    raise DataError(f"cannot evaluate on {type(loader).__name__}; pass a DataLoader, a data set, or (inputs, targets)")


def prediction_batches(given: Any, network: nn.Module, batch_size: int) -> Iterator[Any]:
    """The inputs of each example of ``given`` once, without targets.

    Args:
        given: Inputs (a tensor, an array, or a tuple, list or dict of them), a pair ``(inputs, targets)`` for a network
            that takes one input, or a ``DataLoader``, a data set or an iterable of batches, with or without targets.
            A loader that shuffles is read in the order of its data set.
        network: Its signature decides whether the last item of a tuple is an input or the target.
        batch_size: Examples per batch if the loader does not say.

    Raises:
        DataError: It does not hold tensors and arrays, or holds tensors of different lengths.

    Example:
        >>> network, x, y = nn.Linear(4, 2), torch.zeros(5, 4), torch.zeros(5)
        >>> [tuple(part.shape) for part in prediction_batches((x, y), network, 3)]
        [(3, 4), (2, 4)]
    """
    if _is_array(given) or isinstance(given, (Mapping, tuple, list)):
        nest = as_tensors(given, "predict")
        if isinstance(nest, (tuple, list)) and len(nest) - 1 <= _inputs_of(network)[1] < len(nest):
            nest = _alone(nest[:-1])
        yield from _slices(nest, batch_size)
        return
    if isinstance(given, InMemoryDataset):
        given = PrivateLoader(given, 1)
    if isinstance(given, PrivateLoader):
        yield from (x for x, _ in given.in_order(batch_size))
        return
    sized = hasattr(given, "__getitem__") and hasattr(given, "__len__") and not isinstance(given, (str, bytes))
    if sized or isinstance(given, IterableDataset):
        given = DataLoader(given, batch_size)
    if isinstance(given, DataLoader):
        given = _unshuffled(given)
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        as_tensors(given, "predict")
    for batch in given:
        yield _without_target(as_tensors(batch, "predict"), network)


def joined_inputs(given: Any, network: nn.Module, batch_size: int) -> Any:
    """All of ``prediction_batches`` as one batch, in memory.

    Raises:
        DataError: As in ``prediction_batches``, or there is no batch.

    Example:
        >>> joined_inputs(iter([torch.zeros(3, 2), torch.ones(1, 2)]), nn.Linear(2, 2), 3).shape
        torch.Size([4, 2])
    """
    leaves, forms = zip(*map(tree_flatten, _some(prediction_batches(given, network, batch_size))), strict=True)
    if any(form != forms[0] for form in forms):
        raise DataError("the batches differ in their parts; give the same parts in each")
    return tree_unflatten([torch.cat(column) for column in zip(*leaves, strict=True)], forms[0])


def _some(batches: Iterable[Any]) -> list[Any]:
    found = list(batches)
    if not found:
        raise DataError(NO_BATCH)
    return found


def predictions(network: nn.Module, given: Any, device: torch.device, batch_size: int) -> Any:
    """The outputs of ``network`` in evaluation mode for all of ``prediction_batches``, joined.

    Args:
        network: Left in its mode.
        given: As in ``prediction_batches``.
        device: Where the network is.
        batch_size: As in ``prediction_batches``.

    Raises:
        DataError: As in ``prediction_batches`` and ``join_outputs``, or there is no batch.
    """
    parts, dims = [], None
    with inference(network):
        for batch in prediction_batches(given, network, batch_size):
            x = map_tensors(lambda tensor: tensor.to(device), batch)
            parts.append(outputs_of(network, x))
            if len(parts) == 2:
                plain = isinstance(parts[0], torch.Tensor) and parts[0].dim() > 0
                dims = [0] if plain else dimensions_of(network, x)
    if not parts:
        raise DataError(NO_BATCH)
    return join_outputs(parts, dims)


def _pair(batch: Any) -> Pair:
    x, y = split_pair(batch)
    return dense_pair((as_tensors(x, "eval"), as_tensors(y, "eval")))


def _is_array(value: Any) -> bool:
    return isinstance(value, (torch.Tensor, np.ndarray)) or hasattr(value, "to_numpy")


def _is_pair(value: Any) -> bool:
    """Whether this is ``(inputs, targets)`` rather than a data set or a list of batches."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        return False
    return all(_is_array(part) or (isinstance(value, tuple) and _is_nest(part)) for part in value)


def _is_nest(value: Any) -> bool:
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else ()
    return bool(parts) and all(_is_array(part) or _is_nest(part) for part in parts)


def _slices(nest: Any, batch_size: int) -> Iterator[Any]:
    """Copies of the rows: a network may write to its input."""
    sizes = {len(tensor) if tensor.dim() else 0 for tensor in all_tensors(nest)}
    if len(sizes) != 1:
        raise DataError(f"the first dimension of all tensors must be the number of examples, got {sorted(sizes)}")
    for start in range(0, max(len(first_tensor(nest)), 1), batch_size):
        yield map_tensors(lambda value: value[start : start + batch_size].clone(), nest)  # noqa: B023


def _unshuffled(loader: DataLoader) -> DataLoader:
    known = draws_all(loader.sampler) or chosen_rows(loader.sampler) is not None
    if type(loader.batch_sampler) is not BatchSampler or not known:
        return loader
    return DataLoader(
        drawn_from(loader),
        loader.batch_size,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
    )


def _without_target(batch: Any, network: nn.Module) -> Any:
    """The inputs of a batch of a data set: its last item is the target unless the network needs all items."""
    if not isinstance(batch, (tuple, list)):
        return batch
    keep = len(batch) == 1 or _inputs_of(network)[0] >= len(batch)
    return _alone(batch if keep else batch[:-1])


def _alone(parts: Any) -> Any:
    return parts[0] if len(parts) == 1 else parts


def _inputs_of(network: nn.Module) -> tuple[float, float]:
    """The smallest and the largest number of positional arguments of the network's forward pass."""
    try:
        parameters = list(signature(network.forward).parameters.values())
    except (TypeError, ValueError):
        return 0, math.inf
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    most = math.inf if any(p.kind is p.VAR_POSITIONAL for p in parameters) else len(positional)
    return sum(p.default is p.empty for p in positional), most
