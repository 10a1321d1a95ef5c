"""What a data set was, told apart from every other without keeping any of its examples."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpmodel.data.in_memory import InMemoryDataset


@dataclass(frozen=True)
class Fingerprint:
    """Size and digest of a data set.

    Of test data only: whoever holds a candidate for private data can check it against a digest of them, which no
    epsilon covers.

    Args:
        examples: Number of examples.
        digest: SHA-256 over types, shapes and bytes of inputs and targets, as hex.
    """

    examples: int
    digest: str

    @classmethod
    def of(cls, data: InMemoryDataset) -> Fingerprint:
        """The fingerprint of ``data`` as it is stored, before public constants are applied.

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
        """What ``to_dict`` gave.

        Raises:
            ValueError: Something else.
        """
        examples, digest = (values.get("examples"), values.get("sha256")) if isinstance(values, dict) else (None, None)
        if not isinstance(examples, int) or not isinstance(digest, str):
            raise ValueError(f"a fingerprint holds a whole number of examples and a text sha256, got {values!r}")
        return cls(examples, digest)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"examples": self.examples, "sha256": self.digest}

    def __str__(self) -> str:
        return f"{self.examples:,} examples, SHA-256 {self.digest[:12]}"
