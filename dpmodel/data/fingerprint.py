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

    The digest is for public test data only. With a digest of private data, anyone could verify a guess of them, and no
    epsilon covers that.

    Args:
        examples: Number of examples.
        digest: SHA-256, as hex, of the types, shapes and bytes of inputs and targets; None for private examples.
    """

    examples: int
    digest: str | None

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
        known = values if isinstance(values, dict) and "sha256" in values else {}
        examples, digest = known.get("examples"), known.get("sha256")
        if not isinstance(examples, int) or not isinstance(digest, str | None):
            raise ValueError(
                "a fingerprint must have an integer 'examples', and 'sha256', a string or null, got "
                f"{checks.shown(values)}"
            )
        return cls(examples, digest)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"examples": self.examples, "sha256": self.digest}

    def same_as(self, other: Fingerprint) -> bool | None:
        """Whether both are of the same examples; None if their numbers are equal and one has no digest.

        Example:
            >>> private = Fingerprint(2, None)
            >>> private.same_as(Fingerprint(2, "0")) is None, private.same_as(Fingerprint(3, "0"))
            (True, False)
        """
        if self.examples != other.examples:
            return False
        return None if self.digest is None or other.digest is None else self.digest == other.digest

    def __str__(self) -> str:
        if self.digest is None:
            return f"{self.examples:,} examples held back from the training data"
        return f"{self.examples:,} examples, SHA-256 {self.digest[:12]}"
