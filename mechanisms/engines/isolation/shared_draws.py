"""Random numbers that all examples of a step share, regardless of how the step is divided into passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mechanisms.engines.state.generators import GeneratorKind, each_once, global_generators

_CURRENT: ContextVar[SharedDraws | None] = ContextVar("draws of the step", default=None)


class SharedDraws:
    """Generators that continue from the same state in each vectorised pass of a step.

    Code under ``torch.func.vmap`` that draws from NumPy's or Python's generators, or one number of torch for all
    examples, draws once per pass. If passes drew different numbers, an example that joins a batch and moves others to
    the next pass would change their draws, and so their gradients, without bound. With one draw per step, each gradient
    is a function of its example and of numbers that do not depend on the data.

    Example:
        >>> import random
        >>> draws = SharedDraws()
        >>> draws.begin()
        >>> with draws.of_step():
        ...     restart_shared_draws()
        ...     first = random.random()
        ...     restart_shared_draws()
        ...     first == random.random()
        True
    """

    def __init__(self) -> None:
        self._kinds: list[tuple[Any, GeneratorKind]] = []
        self._states: list[tuple[Any, GeneratorKind, Any]] | None = None
        self._seed: int | None = None
        self._noted = False
        self._of_torch = torch.Generator("cpu")

    def begin(self, generators: Iterable[Any] = ()) -> None:
        """Begin a step; the state of the generators at its first pass is that of all its passes.

        Args:
            generators: Generators that the network keeps, besides the global ones of NumPy and Python. Those of torch
                are ignored: under ``vmap``, they draw different numbers for each example.
        """
        kinds = each_once([*global_generators()[1:], *generators])
        self._kinds = [(one, kind) for one, kind in kinds if not isinstance(one, torch.Generator)]
        self._states = None  # to read it is slow, and a replayed pass draws nothing
        self._seed, self._noted = None, False

    @contextmanager
    def of_step(self) -> Iterator[None]:
        """Surround a pass of the step."""
        if self._states is None:
            self._states = [(one, kind, kind.state(one)) for one, kind in self._kinds]
        token = _CURRENT.set(self)
        try:
            yield
        finally:
            _CURRENT.reset(token)

    def restart(self) -> None:
        """Reset the generators to the state of the step."""
        for generator, kind, state in self._states or ():
            kind.restore(generator, state)
        if self._seed is not None:
            self._of_torch.manual_seed(self._seed)

    def note(self) -> None:
        """Note that a pass of the step draws numbers from torch's generators."""
        self._noted = True

    def used(self) -> bool:
        """Whether a pass of the step has drawn random numbers."""
        drawn = (not _equal(kind.state(one), state) for one, kind, state in self._states or ())
        return self._noted or self._seed is not None or any(drawn)

    def number(self, draw: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """The result of ``draw`` with the generator of the step, on the requested device."""
        device = kwargs.pop("device", None)
        with torch._C.DisableTorchFunction():
            if self._seed is None:  # lazily: other networks draw the same as without this class
                self._seed = int(torch.randint(2**63 - 1, (), device="cpu"))
                self._of_torch.manual_seed(self._seed)
            made = draw(*args, **kwargs, generator=self._of_torch, device="cpu")
            return made if device is None else made.to(device)


def _equal(state: Any, other: Any) -> bool:
    """Whether two states of a generator, nests of numbers and arrays, are equal."""
    if isinstance(state, dict):
        return all(_equal(value, other[key]) for key, value in state.items())
    return bool(np.array_equal(state, other)) if isinstance(state, np.ndarray) else bool(state == other)


def restart_shared_draws() -> None:
    """Begin a pass of the current step, if there is one."""
    current = _CURRENT.get()
    if current is not None:
        current.restart()


def current_draws() -> SharedDraws | None:
    """The shared draws of the current step; None outside a step."""
    return _CURRENT.get()
