"""Random number generators: the global ones of torch, NumPy and Python, and those in data sets and transforms."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dpmodel.data.reachable import reachable
from mechanisms.engines.state.generators import each_once, global_generators, kind_of

_SEED_BYTES = 8

#: If a search visits more objects than this, it is repeated only at the 1st, 2nd, 4th, 8th, ... call.
_LONG_SEARCH = 100


def secret_seed() -> int:
    """An integer below 2**64 from the operating system's generator."""
    return int.from_bytes(os.urandom(_SEED_BYTES), "little")


class Generators:
    """The global CPU generators, and the generators that can be reached from some objects.

    Finds ``torch.Generator``, NumPy's ``Generator``, ``RandomState`` and ``BitGenerator``, and ``random.Random`` in
    attributes, containers, closures, partials and the globals that functions name (see ``reachable``). It cannot find a
    generator that is created in each call or is inside compiled code.

    Args:
        *sources: The data set, the ``collate_fn`` and anything else that draws random numbers.

    Example:
        >>> import random
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
        self._known = each_once([*global_generators()])

    def find(self) -> None:
        """Search the sources for the generators that they hold now."""
        self._calls += 1
        for index, source in enumerate(self._sources):
            if self._visited[index] <= _LONG_SEARCH or not self._calls & (self._calls - 1):
                objects = reachable(source)
                self._visited[index] = len(objects)
                self._found[index] = [value for value in objects if kind_of(value) is not None]
        self._known = each_once([*global_generators(), *(value for found in self._found for value in found)])

    def renew(self, *, search: bool = True) -> None:
        """Search, then seed each generator from the operating system.

        Args:
            search: Whether to search; if not, only generators found so far are seeded.
        """
        if search:
            self.find()
        for generator, kind in self._known:
            kind.seed(generator, secret_seed())

    def seed(self, number: int) -> None:
        """Seed each generator found so far with ``number``, below 2**32."""
        for generator, kind in self._known:
            kind.seed(generator, number)

    @contextmanager
    def preserved(self, *, if_refused: bool = False) -> Iterator[None]:
        """Restore afterwards the state of every generator that exists at the beginning of the block.

        Args:
            if_refused: Restore them only after an exception.
        """
        self.find()
        kept = [(generator, kind, kind.state(generator)) for generator, kind in self._known]
        refused = True
        try:
            yield
            refused = False
        finally:
            for generator, kind, state in kept if refused or not if_refused else []:
                kind.restore(generator, state)
