"""Features on disk, found by a digest of data and network."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import torch
from torch import Tensor

from dpmodel.saving.tensor_file import read_tensor_file, write_tensor_file
from monitors.atomic import PRIVATE_FOLDER
from monitors.errors import CheckpointError

FOLDER = "features"
KIND = "features"

#: Bytes of features in one file; writing needs about three times as much memory.
PART_BYTES = 2**28


class FeatureCache:
    """The features of one data set by one network, in files that their owner alone can read.

    The files are named by the digest. Names of private data's digests let others verify a guess of the data, so the
    folder is private too.

    Args:
        folder: Folder of the cache; the files are in its subfolder ``features``.
        digest: Identifies data and network.
        examples: Number of examples.
    """

    def __init__(self, folder: Path, digest: str, examples: int) -> None:
        self.folder = folder / FOLDER
        self.digest = digest
        self.examples = examples

    def path(self, part: int) -> Path:
        """The file of a part, from 0."""
        return self.folder / f"{self.digest}-{part:04d}.safetensors"

    def read(self) -> Tensor | None:
        """The features; None if there are none, or with a warning if they are damaged or not of this data set."""
        if not self.path(0).exists():
            return None
        try:
            return self._joined()
        except (CheckpointError, LookupError, TypeError, ValueError) as error:
            warn_computed_again(f"the cached features cannot be used: {error}")
            return None

    def write(self, features: Tensor) -> None:
        """Write the features; a disk that is full or read-only is a warning, as they can be computed again."""
        rows = max(1, PART_BYTES // max(1, features[0].numel() * features.element_size()))
        parts = math.ceil(len(features) / rows)
        try:
            self._make_folder()
            # The first part comes last: without it, the others are not looked at.
            for part in reversed(range(parts)):
                chunk = features[part * rows : (part + 1) * rows]
                values = {"kind": KIND, "digest": self.digest, "first": part * rows, "examples": self.examples}
                write_tensor_file(self.path(part), {"features": chunk}, values)
        except OSError as error:
            warnings.warn(f"the features are not cached: {error}", UserWarning, stacklevel=3)

    def _make_folder(self) -> None:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self.folder.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
        if self.folder.stat().st_mode & 0o077:
            self.folder.chmod(PRIVATE_FOLDER)

    def _joined(self) -> Tensor:
        joined: Tensor | None = None
        filled = part = 0
        while joined is None or filled < self.examples:
            rows = self._part(part, filled)
            if joined is None:
                joined = torch.empty((self.examples, *rows.shape[1:]), dtype=rows.dtype)
            if rows.shape[1:] != joined.shape[1:]:
                raise ValueError(f"{self.path(part)} holds features of another shape, {tuple(rows.shape[1:])}")
            joined[filled : filled + len(rows)] = rows
            filled, part = filled + len(rows), part + 1
        return joined

    def _part(self, part: int, first: int) -> Tensor:
        tensors, values = read_tensor_file(self.path(part))
        stated = {"kind": KIND, "digest": self.digest, "first": first, "examples": self.examples}
        if values != stated:
            raise ValueError(f"{self.path(part)} holds something else: {values}")
        rows = tensors["features"]
        if rows.dtype != torch.float32 or rows.dim() < 2 or not 0 < len(rows) <= self.examples - first:
            raise ValueError(f"{self.path(part)} holds {rows.dtype} of shape {tuple(rows.shape)}")
        return rows


def warn_computed_again(reason: str) -> None:
    """Warn that features on disk are not used."""
    warnings.warn(f"{reason}. They are computed again", UserWarning, stacklevel=4)
