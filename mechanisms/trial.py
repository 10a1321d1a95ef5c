"""Shared tools for trials of plugins: trial copies, detection of public generators, and a cache of passed trials."""

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

#: Notes of the passed trials, by plugin and settings.
_PASSED: dict[Any, tuple[str, ...]] = {}
_MOST_PASSED = 1024


def refusal(plugin: Any, finding: str, remedy: str) -> UnprotectedUpdateError:
    """The error for a plugin that failed its trial."""
    return UnprotectedUpdateError(
        f"{type(plugin).__name__} failed its trial before training: {finding}. {remedy}. Nothing was released"
    )


def trial_copy(mechanism: M) -> M:
    """A copy that can be drawn from and updated without changing the mechanism itself.

    Attributes that cannot be copied, such as a hardware random number generator, are shared.

    A copy may contain the state of a secret stream from which the mechanism will draw later. (Copies of a
    ``SecureGenerator`` get a fresh key; copies of a plugin's custom stream may not.) This releases nothing: a trial
    adds its draws to synthetic sums, compares them with the stated distribution, and discards them. It uses no data,
    and an accepted trial reveals one bit: that it passed.
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
def preserve_position(mechanism: Any) -> Iterator[None]:
    """Restore the position of a seeded stream afterwards, because a trial copy may share it through a closure."""
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
    """Watches the global generators of torch, NumPy and Python, whose seeds are public; restores them on exit.

    Args:
        device: Device whose generator is also watched if it is a GPU.

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
        """Names of the generators that were drawn from or seeded since entry."""
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
    """Run a trial unless the same plugin has passed it in this process, and return its notes.

    Plugins are the same if they have the same class, with the same functions, and attributes with the same content. A
    plugin with an attribute of unknown content is tried each time. Anything that its functions read elsewhere, such as
    a global variable of their module, is ignored.

    Args:
        plugin: The mechanism, or the class of a sampler.
        settings: Name of the trial, and everything else that it depends on.
        attempt: The trial; it raises ``UnprotectedUpdateError`` for a fault, and returns notes on what it could not
            try.
    """
    try:
        key = (_behaviour(plugin), settings)
    except _UnknownContentError:
        return attempt()
    if key not in _PASSED:
        notes = attempt()
        while len(_PASSED) >= _MOST_PASSED:
            _PASSED.pop(next(iter(_PASSED)))
        _PASSED[key] = notes
    return _PASSED[key]


class _UnknownContentError(Exception):
    """The content of an attribute is unknown."""


class _Plain:
    """An object of this size has attributes and no other state."""


def _behaviour(plugin: Any) -> tuple[Any, ...]:
    kind = plugin if isinstance(plugin, type) else type(plugin)
    members = tuple(
        (name, value if isinstance(value, _CODE) else _content(value, ()))
        for base in kind.__mro__
        for name, value in vars(base).items()
        if not name.startswith(("__", "_abc_"))
    )
    return kind, members, None if plugin is kind else _content(plugin, ())


#: Class members that are compared by identity: a redefined member is a different one.
_CODE = (FunctionType, staticmethod, classmethod, property)


def _content(value: Any, inside: tuple[int, ...]) -> Hashable:
    """A hashable stand-in that is equal only for equal content."""
    if id(value) in inside:
        raise _UnknownContentError
    inside, kind = (*inside, id(value)), type(value)
    if value is None or kind in (bool, int, str, bytes) or isinstance(value, type):
        return kind, value
    if kind in (float, complex):
        return kind, repr(value)  # distinguishes 0.0 from -0.0, and makes NaN equal to itself
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
