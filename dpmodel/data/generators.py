"""Generators of random numbers: those of torch, NumPy and Python, and those that data sets and transforms keep."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch

from dpmodel.data.reachable import reachable

_SEED_BYTES = 8

#: A search that visits more objects than this is repeated only at the 1st, 2nd, 4th, 8th, ... call.
_LONG_SEARCH = 100


class _Kind(NamedTuple):
    """How one kind of generator is read, set and seeded with a whole number below 2**64."""

    type: type
    state: Callable[[Any], Any]
    restore: Callable[[Any, Any], Any]
    seed: Callable[[Any, int], Any]


def _words(seed: int) -> list[int]:
    return [seed & 0xFFFFFFFF, seed >> 32]


def _seed_bits(bits: Any, seed: int) -> None:
    bits.state = type(bits)(seed).state


def _seed_random_state(generator: Any, seed: int) -> None:
    try:
        generator.seed(_words(seed))
    except TypeError:  # made on another bit generator than MT19937
        _seed_bits(generator._bit_generator, seed)


_KINDS = (
    _Kind(torch.Generator, torch.Generator.get_state, torch.Generator.set_state, torch.Generator.manual_seed),
    _Kind(
        np.random.Generator,
        lambda generator: generator.bit_generator.state,
        lambda generator, state: setattr(generator.bit_generator, "state", state),
        lambda generator, seed: _seed_bits(generator.bit_generator, seed),
    ),
    _Kind(
        np.random.RandomState,
        lambda generator: generator.get_state(legacy=False),
        np.random.RandomState.set_state,
        _seed_random_state,
    ),
    _Kind(
        np.random.BitGenerator,
        lambda bits: bits.state,
        lambda bits, state: setattr(bits, "state", state),
        _seed_bits,
    ),
    _Kind(random.Random, random.Random.getstate, random.Random.setstate, random.Random.seed),
)


def _kind_of(value: Any) -> _Kind | None:
    if isinstance(value, random.SystemRandom):  # secret by itself, and without a state
        return None
    return next((kind for kind in _KINDS if isinstance(value, kind.type)), None)


def _each_once(values: list[Any]) -> list[tuple[Any, _Kind]]:
    """The global generators and ``values``, each with its kind."""
    unique = {id(value): value for value in (torch.default_generator, np.random.mtrand._rand, random._inst, *values)}
    return [(value, kind) for value in unique.values() if (kind := _kind_of(value)) is not None]


def secret_seed() -> int:
    """A whole number below 2**64 from the operating system."""
    return int.from_bytes(os.urandom(_SEED_BYTES), "little")


class Generators:
    """The global generators of the CPU, and those that can be reached from some objects.

    Found are ``torch.Generator``, NumPy's ``Generator``, ``RandomState`` and ``BitGenerator``, and ``random.Random`` in
    attributes, containers, closures, partials and the globals that functions name (see ``reachable``). A generator that
    is made in each call, or lies in compiled code, is not found.

    Args:
        *sources: Data set, ``collate_fn`` and whatever else draws random numbers.

    Example:
        >>> crops = random.Random(0)
        >>> generators = Generators({"crops": crops})
        >>> with generators.preserved():
        ...     generators.renew()
        ...     crops.random() == random.Random(0).random()
        False
        >>> crops.random() == random.Random(0).random()
        True
    """

    def __init__(self, *sources: Any) -> None:
        self._sources = sources
        self._calls = 0
        self._visited = [0] * len(sources)
        self._found: list[list[Any]] = [[] for _ in sources]
        self._known = _each_once([])

    def find(self) -> None:
        """Search the sources for the generators that are there now."""
        self._calls += 1
        for index, source in enumerate(self._sources):
            if self._visited[index] <= _LONG_SEARCH or not self._calls & (self._calls - 1):
                objects = reachable(source)
                self._visited[index] = len(objects)
                self._found[index] = [value for value in objects if _kind_of(value) is not None]
        self._known = _each_once([value for found in self._found for value in found])

    def renew(self) -> None:
        """Search, and seed each generator from the operating system."""
        self.find()
        for generator, kind in self._known:
            kind.seed(generator, secret_seed())

    def seed(self, number: int) -> None:
        """Seed each generator found so far with ``number``, below 2**32."""
        for generator, kind in self._known:
            kind.seed(generator, number)

    @contextmanager
    def preserved(self) -> Iterator[None]:
        """Generators that are there at the beginning continue afterwards as if nothing had happened within."""
        self.find()
        kept = [(generator, kind, kind.state(generator)) for generator, kind in self._known]
        try:
            yield
        finally:
            for generator, kind, state in kept:
                kind.restore(generator, state)
