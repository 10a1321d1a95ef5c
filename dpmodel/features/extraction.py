"""Features of whole data sets, computed once by a frozen network."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dpmodel.claims.weights import claims_of
from dpmodel.data.in_memory import InMemoryDataset
from dpmodel.data.loader import PrivateLoader
from dpmodel.data.progress import progress
from dpmodel.data.splits import DataSplits
from dpmodel.data.tensor_cache import CachedKind, TensorCache
from dpmodel.features.digest import DataDigest, network_digest
from dpmodel.features.example_features import ExampleFeatures, require_shape
from dpmodel.features.row_check import COMPARED, RowSample, require_finite
from dpmodel.preflight.own_rows import require_own_rows
from mechanisms.engines.batch import map_tensors
from mechanisms.engines.probing import inference, preserve_state
from monitors import checks
from monitors.errors import DataError, UnsupportedModuleError

#: How features are kept on disk.
CACHED = CachedKind("features", torch.float32, "computed")


def extract(
    network: nn.Module,
    dataset: Any,
    *,
    cache: str | os.PathLike[str] | None = None,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    what: str = "features",
) -> InMemoryDataset:
    """Features of all examples of ``dataset`` by a frozen network or fixed transform, with the same targets.

    The features of an example depend on that example and the network only, so a private training on them has the same
    guarantee for the examples of ``dataset`` as a training on those examples: computing them costs no privacy. This
    needs a network that is PUBLIC: with fixed or random weights, or trained on public data. A network that was trained
    on the private data is not, unless its own training is on the same ledger.

    The network runs in evaluation mode without gradients, sees each example alone, and is left as it was.

    Args:
        network: Gives one row of floats per example. One that cannot run under ``torch.func.vmap`` runs once for each
            example, with a warning.
        dataset: Map-style data set of pairs (input, target): ``InMemoryDataset``, ``TensorDataset``, or any other.
        cache: A folder that keeps the features in its subfolder ``features``, by a digest of inputs and network. The
            files are private, as they hold private data. Before they are used, their checksum is compared, and the
            features of some examples with those of the network. None: no files.
        batch_size: Examples per pass of the network.
        device: Where the network runs; None: where it is. The features are on the CPU.
        what: Text before the progress bar, which is shown on a terminal only.

    Raises:
        DataError: The data set mixes, repeats or remembers examples, changes from one reading to the next, or its
            targets are of a wrong type; the network does not take the inputs, or gives NaN or infinite features.
        UnsupportedModuleError: The features of an example depend on other examples, or the network was trained
            privately in this process.

    Example:
        >>> data = InMemoryDataset(torch.rand(6, 1, 28, 28), torch.arange(6))
        >>> network = nn.Sequential(nn.AvgPool2d(7), nn.Flatten())
        >>> extract(network, data)
        InMemoryDataset(6 examples of shape (16,), torch.float32)
    """
    checks.positive_int(batch_size=batch_size)
    _require_public(network)
    if not hasattr(dataset, "__getitem__"):
        raise DataError(f"dataset must be a map-style data set of pairs (input, target), got {type(dataset).__name__}")
    loader = PrivateLoader(dataset, 1)
    require_own_rows(loader)
    with _frozen(network, device) as (frozen, place):
        on_device = partial(map_tensors, lambda tensor: tensor.to(place))
        rows = np.linspace(0, len(dataset) - 1, min(COMPARED, len(dataset))).astype(int)
        each = ExampleFeatures(frozen)
        x, y = loader.fetcher[rows]
        sample = RowSample(each, rows, on_device(x))
        InMemoryDataset(sample.alone.float().cpu(), _joined([y]))  # refuses targets of a wrong type before the work
        known = None
        if cache is not None:
            digest, targets = _read(loader, batch_size)
            both = f"{digest[:32]}{network_digest(frozen)[:32]}"
            known = TensorCache(Path(cache).expanduser(), both, len(dataset), CACHED)
            features = known.read()
            if features is not None and sample.agrees(features):
                return InMemoryDataset(features, targets)
            if features is not None:
                CACHED.warn_made_again("the cached features are not those that this network gives")
        features, targets = _computed(each, loader, batch_size, on_device, what)
        if not sample.agrees(features):
            raise DataError(
                f"{type(dataset).__name__} or {type(network).__name__} gives different values each time: features are "
                "computed once, from one reading. Remove random augmentation, and keep no state in the network"
            )
    if known is not None:
        known.write(features)
    return InMemoryDataset(features, targets)


def extract_splits(
    network: nn.Module,
    data: DataSplits,
    *,
    cache: str | os.PathLike[str] | None = None,
    batch_size: int = 256,
    device: torch.device | str | None = None,
) -> DataSplits:
    """``extract`` for training and test data; the result keeps the fingerprint of the test data as read."""
    settings: dict[str, Any] = {"cache": cache, "batch_size": batch_size, "device": device}
    train = extract(network, data.train, what="features, training data", **settings)
    test = extract(network, data.test, what="features, test data", **settings)
    return replace(data, train=train, test=test, read_test=data.test_fingerprint)


def _require_public(network: nn.Module) -> None:
    if not isinstance(network, nn.Module):
        raise TypeError(f"network must be a torch.nn.Module, got {type(network).__name__}")
    if any(len(claim.ledger) for claim in claims_of(network)):
        raise UnsupportedModuleError(
            f"{type(network).__name__} was trained privately: a training on its features would start a ledger without "
            "those releases, and understate what was spent on the same data. Train one DPModel that holds both the "
            "frozen network and the new layers: its ledger continues"
        )


@contextmanager
def _frozen(network: nn.Module, device: torch.device | str | None) -> Iterator[tuple[nn.Module, torch.device]]:
    """The network for inference and its device: itself, or a copy on another device."""
    found = next((tensor.device for tensor in (*network.parameters(), *network.buffers())), torch.device("cpu"))
    place = found if device is None else torch.device(device)
    if place != found:
        network = copy.deepcopy(network).to(place)
    # TF32 would make the features of an example depend on the size of its batch.
    exact = torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False)
    with preserve_state(network), inference(network), exact:
        yield network, place


def _read(loader: PrivateLoader, batch_size: int) -> tuple[str, Tensor]:
    """The digest of the inputs, and the targets."""
    digest, targets = DataDigest(), []
    for x, y in loader.in_order(batch_size):
        digest.update(x)
        targets.append(y)
    return digest.hexdigest(), _joined(targets)


def _computed(
    each: ExampleFeatures, loader: PrivateLoader, batch_size: int, on_device: Any, what: str
) -> tuple[Tensor, Tensor]:
    features, targets, done = torch.empty(0), [], 0
    with progress(what, loader.num_examples) as advance:
        for x, y in loader.in_order(batch_size):
            found = each(on_device(x)).float().cpu()
            require_finite(found, range(done, done + len(found)))
            if not done:
                features = torch.empty((loader.num_examples, *found.shape[1:]))
            features[done : done + len(found)] = require_shape(found, features.shape)
            done += len(found)
            targets.append(y)
            advance(len(found))
    return features, _joined(targets)


def _joined(targets: list[Any]) -> Tensor:
    if not all(isinstance(part, Tensor) for part in targets):
        raise DataError(f"targets must be one tensor per example, got {type(targets[0]).__name__}")
    joined = torch.cat(targets).cpu()
    return joined.float() if joined.dtype == torch.float64 else joined
