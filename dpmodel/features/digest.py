"""Digests of data sets and networks: the same digest means the same features."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mechanisms.engines.batch import all_tensors

#: Part of each digest: changes if the same settings give different features.
_VERSION = "dpmodel-features/2"


class DataDigest:
    """SHA-256 of inputs that arrive batch by batch; the size of the batches does not matter."""

    def __init__(self) -> None:
        self._hashes: list[Any] = []

    def update(self, x: Any) -> None:
        """Add a batch: a tensor, or tensors in tuples, lists and dicts."""
        tensors = all_tensors(x)
        if not self._hashes:
            self._hashes = [hashlib.sha256(f"{part.dtype} {tuple(part.shape[1:])};".encode()) for part in tensors]
        for each, part in zip(self._hashes, tensors, strict=True):
            each.update(_bytes(part))

    def hexdigest(self) -> str:
        """The digest of all batches so far."""
        return hashlib.sha256(b"".join(each.digest() for each in self._hashes)).hexdigest()


def network_digest(network: nn.Module) -> str:
    """SHA-256 of what ``network`` shows: classes, settings that it prints, parameters and all buffers.

    What it hides, such as the code of ``forward`` or plain attributes, is found by comparing features.
    """
    digest = hashlib.sha256(f"{_VERSION};{network!r};".encode())
    for name, module in network.named_modules():
        kind = type(module)
        digest.update(f"{name}:{kind.__module__}.{kind.__qualname__};".encode())
    for name, tensor in _named_tensors(network):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _named_tensors(network: nn.Module) -> Iterable[tuple[str, Tensor]]:
    yield from network.named_parameters()
    yield from network.named_buffers()  # also those that are not saved


def _bytes(tensor: Tensor) -> Any:
    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else b""
