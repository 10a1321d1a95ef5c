"""Tensors on disk that can be made again, found by a digest of what they were made from."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dpmodel.saving.tensor_file import read_tensor_file, write_tensor_file
from monitors.atomic import PRIVATE_FOLDER, remove_leftovers
from monitors.errors import CheckpointError

#: Bytes of a tensor in one file; writing needs about three times as much memory.
PART_BYTES = 2**28

#: Seconds after which an unfinished file is that of a killed process.
_ABANDONED = 24 * 3600.0


@dataclass(frozen=True)
class CachedKind:
    """A kind of tensor that is kept on disk.

    Args:
        name: Its name in words, such as ``"features"``. It gives the subfolder, too.
        dtype: Its type.
        made: What happens if there is none, in words.
        remedy: What to do if it cannot be written, in words; empty if there is nothing to add.
    """

    name: str
    dtype: torch.dtype
    made: str
    remedy: str = ""

    @property
    def folder(self) -> str:
        """Name of the subfolder of the cache."""
        return self.name.replace(" ", "_")

    def warn_made_again(self, reason: str) -> None:
        """Warn that a tensor on disk is not used."""
        warnings.warn(f"{reason}. They are {self.made} again", UserWarning, stacklevel=4)

    def warn_not_kept(self, error: Exception) -> None:
        """Warn that a tensor is not kept on disk."""
        warnings.warn(f"the {self.name} are not cached: {error}{self.remedy}", UserWarning, stacklevel=4)


class TensorCache:
    """One tensor with a row per example, in files that their owner alone can read.

    The files are named by the digest. Names of private data's digests let others verify a guess of the data, so the
    folder is private too.

    Args:
        folder: Folder of the cache; the files are in its subfolder ``kind.folder``.
        digest: Identifies what the tensor is made from.
        examples: Number of rows.
        kind: The kind of tensor.
    """

    def __init__(self, folder: Path, digest: str, examples: int, kind: CachedKind) -> None:
        self.folder = folder / kind.folder
        self.digest = digest
        self.examples = examples
        self.kind = kind

    def path(self, part: int) -> Path:
        """The file of a part, from 0."""
        return self.folder / f"{self.digest}-{part:04d}.safetensors"

    def exists(self) -> bool:
        """Whether there is a tensor of this digest that nobody else can have written. It may be damaged."""
        try:
            found = self.folder.stat()
            return _is_own(found) and not found.st_mode & 0o022 and self.path(0).exists()
        except OSError:  # there is no folder, or it may not be searched: writing states it
            return False

    def read(self) -> Tensor | None:
        """The tensor; None if there is none, or with a warning if it is damaged or made from something else."""
        if not self.exists():
            return None
        try:
            return self._joined()
        except (CheckpointError, LookupError, TypeError, ValueError) as error:
            self.kind.warn_made_again(f"the cached {self.kind.name} cannot be used: {error}")
            return None

    def write(self, rows: Tensor) -> None:
        """Write the tensor; a disk that is full or read-only is a warning, as it can be made again."""
        size = max(1, PART_BYTES // max(1, rows[0].numel() * rows.element_size()))
        parts, written = math.ceil(len(rows) / size), []
        try:
            self._make_folder()
            # The first part comes last: without it, the others are not looked at.
            for part in reversed(range(parts)):
                chunk = rows[part * size : (part + 1) * size]
                write_tensor_file(self.path(part), {self.kind.name: chunk}, self._values(part * size))
                written.append(self.path(part))
        except OSError as error:
            for path in written:  # of no use without the first part, on a disk that may be full
                with contextlib.suppress(OSError):
                    path.unlink()
            self.kind.warn_not_kept(error)

    def _values(self, first: int) -> dict[str, object]:
        return {"kind": self.kind.name, "digest": self.digest, "first": first, "examples": self.examples}

    def _make_folder(self) -> None:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self.folder.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
        found = self.folder.stat()
        if not _is_own(found):
            raise PermissionError(errno.EPERM, "the folder belongs to another user", str(self.folder))
        if found.st_mode & 0o077:
            self.folder.chmod(PRIVATE_FOLDER)
        remove_leftovers(self.folder, older_than=_ABANDONED)

    def _joined(self) -> Tensor:
        joined: Tensor | None = None
        filled = part = 0
        while joined is None or filled < self.examples:
            rows = self._part(part, filled)
            if joined is None:
                joined = torch.empty((self.examples, *rows.shape[1:]), dtype=rows.dtype)
            if rows.shape[1:] != joined.shape[1:]:
                raise ValueError(f"{self.path(part)} holds {self.kind.name} of another shape, {tuple(rows.shape[1:])}")
            joined[filled : filled + len(rows)] = rows
            filled, part = filled + len(rows), part + 1
        return joined

    def _part(self, part: int, first: int) -> Tensor:
        tensors, values = read_tensor_file(self.path(part))
        if values != self._values(first):
            raise ValueError(f"{self.path(part)} holds something else: {values}")
        rows = tensors[self.kind.name]
        if rows.dtype != self.kind.dtype or rows.dim() < 2 or not 0 < len(rows) <= self.examples - first:
            raise ValueError(f"{self.path(part)} holds {rows.dtype} of shape {tuple(rows.shape)}")
        return rows


def _is_own(found: os.stat_result) -> bool:
    return not hasattr(os, "getuid") or found.st_uid == os.getuid()
