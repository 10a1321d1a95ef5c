"""Examples read for a check: each once, under equal seeds, in limited time."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from dpmodel.data.generators import Generators
from dpmodel.data.held_rows import NO_HOLDERS, SHORT
from dpmodel.data.loader import PrivateLoader

#: Seconds that reading may take in one check, and the number of examples that are read in any case.
SECONDS = 0.2
AT_LEAST = 24

_SEED = 20_011
_DEPTH = 6
_HOLDER_DEPTH = 4
_MOST_HOLDERS = 100


class Readings:
    """Reads examples such that equal examples have equal digests, augmentation included.

    All reachable generators get the same seed before each reading.

    Args:
        loader: Its data set is read, without ``collate_fn``.
    """

    def __init__(self, loader: PrivateLoader) -> None:
        self._loader = loader
        self._digests: dict[int, bytes | None] = {}
        self._generators = Generators(loader.dataset)
        self._generators.find()
        #: Called with the row before it is read, and with None afterwards.
        self.watch: Callable[[int | None], None] = lambda row: None

    @property
    def rows(self) -> list[int]:
        """The rows that have been read and can be compared, in the order of reading."""
        return [row for row, digest in self._digests.items() if digest is not None]

    def __getitem__(self, row: int) -> bytes | None:
        """The digest of example ``row``; None if it cannot be read or compared."""
        if row not in self._digests:
            self._digests[row] = self.again(row)
        return self._digests[row]

    def again(self, row: int) -> bytes | None:
        """``self[row]``, read again."""
        fetcher = self._loader.fetcher
        self._generators.seed(_SEED)
        self.watch(row)
        try:
            return digest(self._loader.dataset[row] if fetcher.collates else fetcher[np.array([row])])
        except Exception:  # training will raise the user's own error
            return None
        finally:
            self.watch(None)

    def read(self, rows: Iterable[int]) -> None:
        """Read ``rows`` in this order while time allows."""
        started = time.perf_counter()
        for count, row in enumerate(rows):
            if count >= AT_LEAST and time.perf_counter() - started > SECONDS:
                return
            self[row]

    @contextmanager
    def preserved(self) -> Iterator[None]:
        """Restore the generators, and the attributes of the data set and of the data sets within it.

        A file that the first reading opens is therefore opened again in each worker process.
        """
        dataset = self._loader.dataset
        inner = [holder for holder in holders(dataset) if holder is dataset or isinstance(holder, Dataset)]
        kept = [(holder, dict(vars(holder))) for holder in inner]
        with self._generators.preserved():
            try:
                yield
            finally:
                for holder, attributes in kept:
                    for name in vars(holder).keys() - attributes.keys():
                        del vars(holder)[name]
                    vars(holder).update(attributes)


def holders(dataset: Any) -> list[Any]:
    """The data set, and the objects with attributes that it holds directly, in short containers or through others.

    Functions, modules, classes and what they refer to are not part of it.
    """
    found: dict[int, Any] = {}
    waiting = [(dataset, 0)]
    while waiting and len(found) < _MOST_HOLDERS:
        value, depth = waiting.pop(0)
        if id(value) in found or depth > _HOLDER_DEPTH or not _is_holder(value):
            continue
        found[id(value)] = value
        for held in list(vars(value).values()):
            waiting += [(part, depth + 1) for part in parts_of(held) or [held]]
    return list(found.values())


def parts_of(value: Any) -> list[Any]:
    """The elements of a short list, tuple or dict; an empty list for anything else."""
    if type(value) not in (list, tuple, dict) or len(value) > SHORT:
        return []
    return list(value.values()) if isinstance(value, dict) else list(value)


def _is_holder(value: Any) -> bool:
    return hasattr(value, "__dict__") and not isinstance(value, (*NO_HOLDERS, torch.Tensor, np.ndarray))


def digest(value: Any) -> bytes | None:
    """A digest of a nest of tensors, arrays, numbers, strings, images and plain objects; None for anything else."""
    hashed = hashlib.blake2b(digest_size=16)
    return hashed.digest() if _feed(hashed.update, value, 0) else None


def _feed(update: Callable[[bytes], None], value: Any, depth: int) -> bool:
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        update(f"{type(value).__name__}{value!r};".encode())
        return True
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
        update(f"{value.dtype}{tuple(value.shape)}".encode())
        update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
        return True
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype != object:
        update(f"{value.dtype}{value.shape}".encode())
        update(value.tobytes())
        return True
    parts = _parts_to_digest(value)
    if parts is None or depth > _DEPTH:
        return False
    update(f"{len(parts)}(".encode())
    return all(_feed(update, part, depth + 1) for part in parts)


def _parts_to_digest(value: Any) -> list[Any] | None:
    if isinstance(value, Mapping):
        return [part for key in sorted(value, key=str) for part in (str(key), value[key])]
    if isinstance(value, (list, tuple, np.ndarray)):
        return list(value)
    if hasattr(value, "tobytes") and hasattr(value, "size"):  # an image of Pillow
        return [str(value.size), value.tobytes()]
    attributes = getattr(value, "__dict__", None)
    return [type(value).__name__, attributes] if attributes else None
