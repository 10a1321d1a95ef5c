"""Fingerprints identify a data set without keeping any of its examples."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from monitors import checks

if TYPE_CHECKING:
    from dpmodel.data.in_memory import InMemoryDataset


@dataclass(frozen=True)
class Fingerprint:
    """Size and digest of a data set.

    For test data only. With a digest of private data, anyone could verify a guess of them, and no epsilon covers that.

    Args:
        examples: Number of examples.
        digest: SHA-256, as hex, of the types, shapes and bytes of inputs and targets.
    """

    examples: int
    digest: str

    @classmethod
    def of(cls, data: InMemoryDataset) -> Fingerprint:
        """The fingerprint of ``data`` as stored, before ``mean`` and ``std`` are applied.

        Example:
            >>> import torch
            >>> from dpmodel.data import InMemoryDataset
            >>> data = InMemoryDataset(torch.zeros(2, 3), torch.tensor([0, 1]))
            >>> other = InMemoryDataset(torch.zeros(2, 3), torch.tensor([1, 0]))
            >>> Fingerprint.of(data) == Fingerprint.of(other)
            False
        """
        digest = hashlib.sha256()
        for tensor in (data.x, data.y):
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)};".encode())
            digest.update(tensor.cpu().contiguous().numpy().data)
        return cls(len(data), digest.hexdigest())

    @classmethod
    def from_dict(cls, values: Any) -> Fingerprint:
        """The fingerprint from the output of ``to_dict``.

        Raises:
            ValueError: ``values`` is not the output of ``to_dict``.
        """
        examples, digest = (values.get("examples"), values.get("sha256")) if isinstance(values, dict) else (None, None)
        if not isinstance(examples, int) or not isinstance(digest, str):
            raise ValueError(
                f"a fingerprint must have an integer 'examples' and a string 'sha256', got {checks.shown(values)}"
            )
        return cls(examples, digest)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"examples": self.examples, "sha256": self.digest}

    def __str__(self) -> str:
        return f"{self.examples:,} examples, SHA-256 {self.digest[:12]}"
