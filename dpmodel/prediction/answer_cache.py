"""Answers that were given, kept on the disk: the same query again costs nothing and gets the same answer."""

from __future__ import annotations

import base64
import binascii
import hashlib
import operator
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from dpmodel.claims.optimizer_steps import optimizer_steps
from dpmodel.features.digest import network_digest
from dpmodel.saving.lock import FolderLock
from mechanisms.engines.batch import all_tensors, map_tensors
from monitors.atomic import naming, open_for_appending, read_without_links, sync_folder
from monitors.errors import CheckpointError
from monitors.untrusted import MAX_LEDGER_BYTES

ANSWERS_NAME = "answers.txt"

#: Part of each digest: changes if the same settings give different answers.
_VERSION = "dpmodel-answers/1"


class AnswerCache:
    """Noisy scores by the digest of a query, in the folder of a ``QueryLedger``.

    An answer is on the disk before it is given. A process that is killed between the charge and that moment loses the
    answer, and what was charged stays charged. An incomplete last line is such an answer, and is ignored.

    A digest covers the bytes, shapes and types of the query, the network, the settings of the mechanism and the ledger
    that was charged: an answer that another ledger has paid for is not free here. Everyone who asks the same query gets
    the same answer, and can see that it was not charged.

    Args:
        path: The file; the first answer creates it, private to the user. It is never read or written through a link.
        lock: The lock of its folder, which is held.
        ledger: ID of the ledger.

    Raises:
        CheckpointError: The file is not readable, or a line was changed.
    """

    def __init__(self, path: Path, lock: FolderLock, ledger: str) -> None:
        self.path = path
        self._lock, self._ledger = lock, ledger
        self._guard = threading.Lock()
        self._size = self._torn = 0  # bytes of the whole lines, and of an incomplete last one
        self._known: dict[str, bytes] = {}
        self._read()

    def __len__(self) -> int:
        return len(self._known)

    def __repr__(self) -> str:
        return f"AnswerCache({str(self.path)!r}, {len(self)} answers)"

    def answer(self, x: Any, context: str, fresh: Callable[[Any], Tensor]) -> Tensor:
        """Scores of each row of ``x``; only rows that were never asked are answered anew, each once.

        Args:
            x: A tensor (B, ...), or tensors in tuples, lists and dicts.
            context: What the answers depend on besides ``x``.
            fresh: Charges and answers rows: scores (B', classes) of float64.

        Raises:
            CheckpointError: A new answer cannot be written; it is not given, but charged.
        """
        keys = row_digests(x, f"{self._ledger} {context}")
        with self._guard:
            first = {key: row for row, key in reversed(list(enumerate(keys))) if key not in self._known}
            if first or not keys:
                rows = torch.tensor(sorted(first.values()), dtype=torch.int64)
                scores = fresh(map_tensors(lambda part: part.index_select(0, rows.to(part.device)), x))
                if not keys:
                    return scores
                self._append([(keys[row], score) for row, score in zip(rows.tolist(), scores.numpy(), strict=True)])
            found = [np.frombuffer(self._known[key]) for key in keys]
        return torch.from_numpy(np.stack(found))

    def _append(self, answers: Iterable[tuple[str, Any]]) -> None:
        new = {key: np.ascontiguousarray(scores, dtype=np.float64).tobytes() for key, scores in answers}
        content = "".join(_line(key, scores) for key, scores in new.items()).encode("ascii")
        folder = self._lock.handle()
        created = not self._size + self._torn
        try:
            handle = open_for_appending(self.path, create=created, folder=folder)
            try:
                with naming(self.path):
                    self._write(handle, content)
            finally:
                os.close(handle)
            if created:
                sync_folder(self.path.parent if folder is None else folder)
        except OSError as error:
            raise CheckpointError(
                f"{self.path} cannot be written: {error.strerror}. The answers are not given; they were charged"
            ) from error
        self._known.update(new)

    def _write(self, handle: int, content: bytes) -> None:
        if os.fstat(handle).st_size != self._size + self._torn:
            raise CheckpointError(f"{self.path} was changed while it was in use; open the query ledger again")
        if self._torn:
            os.ftruncate(handle, self._size)
            self._torn = 0
        written = 0
        try:
            while written < len(content):
                written += os.write(handle, content[written:])
            os.fsync(handle)
        except OSError:
            self._torn = written
            raise
        self._size += len(content)

    def _read(self) -> None:
        try:
            content = read_without_links(self.path, folder=self._lock.handle(), limit=MAX_LEDGER_BYTES)
        except FileNotFoundError:
            return
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error.strerror or error}") from error
        whole, _, torn = content.rpartition(b"\n")
        for number, line in enumerate(whole.split(b"\n") if whole else [], start=1):
            answer = _parsed(line)
            if answer is None:
                raise CheckpointError(
                    f"{self.path}, line {number}: it was changed after it was written. Restore the original file, or "
                    "remove it: earlier queries are then charged again"
                )
            self._known[answer[0]] = answer[1]
        self._size, self._torn = len(content) - len(torn), len(torn)


def row_digests(x: Any, context: str) -> list[str]:
    """SHA-256, as hex, of each row of ``x`` with its shapes and types, and of ``context``.

    Example:
        >>> one, other, same = row_digests(torch.tensor([[1.0], [2.0], [1.0]]), "a")
        >>> one == same, one == other, one == row_digests(torch.tensor([[1.0]]), "b")[0]
        (True, False, False)
    """
    form = tree_map(lambda part: (str(part.dtype), tuple(part.shape[1:])), x)
    start = hashlib.sha256(f"{_VERSION};{context};{form};".encode())
    parts = [part.detach().cpu().contiguous() for part in all_tensors(x)]
    found = []
    for row in range(len(parts[0])):
        digest = start.copy()
        for part in parts:
            digest.update(part[row].reshape(-1).view(torch.uint8).numpy().data)
        found.append(digest.hexdigest())
    return found


class NetworkDigests:
    """The digest of networks, computed again after a change of their parameters or buffers through torch.

    It is computed again after any step of an optimizer too: a fused one raises no version of what it changes.

    Args:
        networks: The networks.
    """

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        self._networks = list(networks)
        self._tensors: list[Tensor] = []
        self._versions: list[int] = []
        self._digest = ""

    def current(self) -> str:
        """SHA-256, as hex, of the digests of the networks."""
        tensors = [part for each in self._networks for part in (*each.parameters(), *each.buffers())]
        versions = [*(part._version for part in tensors), optimizer_steps()]
        same = len(tensors) == len(self._tensors) and all(map(operator.is_, tensors, self._tensors))
        if not self._digest or not same or versions != self._versions:
            joined = "".join(map(network_digest, self._networks))
            self._tensors, self._versions = tensors, versions
            self._digest = hashlib.sha256(joined.encode()).hexdigest()
        return self._digest


def _line(key: str, scores: bytes) -> str:
    text = f"{key} {base64.b64encode(scores).decode('ascii')}"
    return f"{_checksum(text)} {text}\n"


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]


def _parsed(line: bytes) -> tuple[str, bytes] | None:
    """Digest and scores; None if this is not an unchanged line."""
    try:
        checksum, _, text = line.decode("ascii").partition(" ")
        key, _, scores = text.partition(" ")
        answer = key, base64.b64decode(scores, validate=True)
    except (UnicodeDecodeError, binascii.Error):
        return None
    return answer if checksum == _checksum(text) and answer[1] and not len(answer[1]) % 8 else None
