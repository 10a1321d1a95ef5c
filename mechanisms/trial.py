"""What the trials of all plugins need: copies to try, a watch over public generators, and a memory of what passed."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FunctionType, MethodType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from mechanisms.rng import SecureGenerator
from monitors.errors import UnprotectedUpdateError

M = TypeVar("M")

#: Trials that passed and what they noted, by what was tried.
_PASSED: dict[Any, tuple[str, ...]] = {}
_REMEMBERED = 1024


def refusal(plugin: Any, finding: str, remedy: str) -> UnprotectedUpdateError:
    """The error for a plugin that failed its trial."""
    return UnprotectedUpdateError(
        f"{type(plugin).__name__} failed its trial before the training: {finding}. {remedy}. Nothing was released"
    )


def trial_copy(mechanism: M) -> M:
    """A copy that can be drawn from and updated while the mechanism itself stays as it is.

    What cannot be copied, such as a device that gives random numbers, is shared.

    A copy may hold the state of a secret stream that the mechanism will draw from later. (``SecureGenerator`` gives its
    copies a fresh key; a stream of a plugin's own may not.) That releases nothing: what a trial draws is added to sums
    that it makes up, compared with what is stated, and dropped. No data are in it, and of an accepted trial one bit
    leaves, that it passed.
    """
    try:
        return copy.deepcopy(mechanism)
    except Exception:
        twin = copy.copy(mechanism)
        for name, value in vars(mechanism).items():
            try:
                twin.__dict__[name] = copy.deepcopy(value)
            except Exception:
                twin.__dict__[name] = value
        return twin


@contextmanager
def unmoved(mechanism: Any) -> Iterator[None]:
    """A stream that a user's seed fixes stands where it stood afterwards, also when a copy reached it in a closure."""
    stream = getattr(mechanism, "generator", None)
    if not isinstance(stream, SecureGenerator) or stream.position is None:
        yield
        return
    position = stream.position
    try:
        yield
    finally:
        if stream.position != position:
            stream.seek(position)


class PublicGenerators:
    """The global generators of torch, NumPy and Python, whose seeds are public. They are put back at the end.

    Args:
        device: A GPU whose generator is watched too, or the CPU.

    Example:
        >>> with PublicGenerators() as public:
        ...     _ = torch.randn(3)
        ...     public.moved()
        ['torch']
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._gpu = device if device is not None and device.type == "cuda" else None

    def __enter__(self) -> PublicGenerators:
        self._before = self._states()
        return self

    def __exit__(self, *exception: object) -> None:
        moved = self.moved()
        if "torch" in moved:
            torch.set_rng_state(self._before["torch"])
            if self._gpu is not None:
                torch.cuda.set_rng_state(self._before["torch on the GPU"], self._gpu)
        if "NumPy" in moved:
            np.random.set_state(self._before["NumPy"])
        if "Python" in moved:
            random.setstate(self._before["Python"])

    def moved(self) -> list[str]:
        """Which of them were drawn from, or seeded, since they were entered."""
        now = self._states()
        return [name for name, before in self._before.items() if not _same(before, now[name])]

    def _states(self) -> dict[str, Any]:
        states = {"torch": torch.get_rng_state(), "NumPy": np.random.get_state(), "Python": random.getstate()}
        if self._gpu is not None:
            states["torch on the GPU"] = torch.cuda.get_rng_state(self._gpu)
        return states


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, tuple) and any(isinstance(part, np.ndarray) for part in one):
        return all(np.array_equal(first, second) for first, second in zip(one, other, strict=True))
    return bool(one == other)


def once(plugin: Any, settings: Hashable, attempt: Callable[[], tuple[str, ...]]) -> tuple[str, ...]:
    """Run a trial, unless the same plugin has passed it in this process; gives its notes.

    The same plugin: the same class with the same functions, and attributes of the same content. A plugin with an
    attribute whose content cannot be told is tried each time. What its functions read elsewhere, such as a global
    variable of its module, is not looked at.

    Args:
        plugin: The mechanism, or the class of a sampler.
        settings: The name of the trial and what else it depends on.
        attempt: The trial; raises ``UnprotectedUpdateError`` for what is wrong, gives notes on what it cannot try.
    """
    try:
        key = (_behaviour(plugin), settings)
    except _UnknownContentError:
        return attempt()
    if key not in _PASSED:
        notes = attempt()
        while len(_PASSED) >= _REMEMBERED:
            _PASSED.pop(next(iter(_PASSED)))
        _PASSED[key] = notes
    return _PASSED[key]


class _UnknownContentError(Exception):
    """The content of an attribute cannot be told."""


class _Plain:
    """An object of this size has attributes, and no state beside them."""


def _behaviour(plugin: Any) -> tuple[Any, ...]:
    kind = plugin if isinstance(plugin, type) else type(plugin)
    members = tuple(
        (name, value if isinstance(value, _CODE) else _content(value, ()))
        for base in kind.__mro__
        for name, value in vars(base).items()
        if not name.startswith(("__", "_abc_"))
    )
    return kind, members, None if plugin is kind else _content(plugin, ())


#: Members of a class that are told apart as objects: what is defined anew is another one.
_CODE = (FunctionType, staticmethod, classmethod, property)


def _content(value: Any, inside: tuple[int, ...]) -> Hashable:
    """A stand-in that is equal for equal content only."""
    if id(value) in inside:
        raise _UnknownContentError
    inside, kind = (*inside, id(value)), type(value)
    if value is None or kind in (bool, int, str, bytes) or isinstance(value, type):
        return kind, value
    if kind in (float, complex):
        return kind, repr(value)  # tells 0.0 from -0.0, and is equal to itself for NaN
    if kind is SecureGenerator:
        return kind, value.reproducible
    if kind in (Tensor, np.ndarray):
        array = value.detach().cpu().numpy() if kind is Tensor else value
        if not array.dtype.hasobject:
            return kind, array.shape, str(array.dtype), array.tobytes()
    if kind in (tuple, list):
        return kind, tuple(_content(part, inside) for part in value)
    if kind is dict:
        return kind, tuple((_content(key, inside), _content(part, inside)) for key, part in value.items())
    return _content_of_object(value, inside)


def _content_of_object(value: Any, inside: tuple[int, ...]) -> Hashable:
    kind = type(value)
    if kind is MethodType:
        return value.__func__, _content(value.__self__, inside)
    if kind is FunctionType:
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        bound = _content([cells, value.__defaults__, value.__kwdefaults__], inside)
        return value.__code__, value.__module__, bound
    if kind is partial:
        return kind, _content([value.func, value.args, value.keywords, vars(value)], inside)
    if kind.__basicsize__ == _Plain.__basicsize__ and not kind.__itemsize__ and hasattr(value, "__dict__"):
        return kind, _content(vars(value), inside)
    raise _UnknownContentError
