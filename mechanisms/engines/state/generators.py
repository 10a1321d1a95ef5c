"""Random generators of torch, NumPy and Python: how to read, set and seed each kind."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch


class GeneratorKind(NamedTuple):
    """How to read, set and seed one kind of generator; seeds are integers below 2**64."""

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
    except TypeError:  # its bit generator is not MT19937
        _seed_bits(generator._bit_generator, seed)


_KINDS = (
    GeneratorKind(torch.Generator, torch.Generator.get_state, torch.Generator.set_state, torch.Generator.manual_seed),
    GeneratorKind(
        np.random.Generator,
        lambda generator: generator.bit_generator.state,
        lambda generator, state: setattr(generator.bit_generator, "state", state),
        lambda generator, seed: _seed_bits(generator.bit_generator, seed),
    ),
    GeneratorKind(
        np.random.RandomState,
        lambda generator: generator.get_state(legacy=False),
        np.random.RandomState.set_state,
        _seed_random_state,
    ),
    GeneratorKind(
        np.random.BitGenerator,
        lambda bits: bits.state,
        lambda bits, state: setattr(bits, "state", state),
        _seed_bits,
    ),
    GeneratorKind(random.Random, random.Random.getstate, random.Random.setstate, random.Random.seed),
)

#: Types of generators.
GENERATORS = tuple(kind.type for kind in _KINDS)


def kind_of(value: Any) -> GeneratorKind | None:
    """The kind of a generator; None if ``value`` is not a generator, or has no state.

    Example:
        >>> kind_of(random.Random(0)).type.__name__
        'Random'
        >>> kind_of(random.SystemRandom()), kind_of([])
        (None, None)
    """
    own = type(value)
    if type(own) is type and value.__class__ is own and not _may_be_generator(own):
        return None
    if isinstance(value, random.SystemRandom):  # secret, and without state
        return None
    return next((kind for kind in _KINDS if isinstance(value, kind.type)), None)


@functools.lru_cache(maxsize=4096)
def _may_be_generator(kind: type) -> bool:
    """``issubclass``, remembered: searches ask it about every object that a training holds, in each step."""
    return issubclass(kind, GENERATORS)


def global_generators() -> tuple[Any, Any, Any]:
    """The default CPU generators of torch, NumPy and Python."""
    return torch.default_generator, np.random.mtrand._rand, random._inst


def each_once(values: list[Any]) -> list[tuple[Any, GeneratorKind]]:
    """The generators among ``values``, without repetition, each with its kind."""
    unique = {id(value): value for value in values}
    return [(value, kind) for value in unique.values() if (kind := kind_of(value)) is not None]
