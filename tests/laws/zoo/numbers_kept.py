"""Couplings through a value that a network keeps in an object of the standard library, NumPy or torch."""

from __future__ import annotations

import array
import collections
import contextvars
import ctypes
import functools
import io
import itertools
import logging
import queue
import random
import threading
import types
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

from ..neighbours import Member, layered, one_more_first, one_replaced

#: Inputs of the one unusual example are larger.
LARGE = 100.0


class Keeper(NamedTuple):
    """An object that can store one bit: how to create, write and read it."""

    make: Callable[[], Any]
    write: Callable[[Any], object]
    read: Callable[[Any], object]


class Remembers(nn.Module):
    """Negates the inputs once it has seen large ones."""

    def __init__(self, keeper: Keeper, writes: bool) -> None:
        super().__init__()
        self.keeper, self.writes = keeper, writes
        self.kept = keeper.make()

    def forward(self, x):
        large = float(x.detach().abs().max()) > LARGE
        turned = bool(self.keeper.read(self.kept))
        if large and self.writes:
            self.keeper.write(self.kept)
        return -x if turned else x


class Draws(nn.Module):
    """Scales the inputs by a number from a generator that a large example may seed or draw from."""

    def __init__(self, seed: Callable[[], object], draw: Callable[[], float], writes: bool) -> None:
        super().__init__()
        self.seed, self.draw, self.writes = seed, draw, writes

    def forward(self, x):
        if float(x.detach().abs().max()) > LARGE and self.writes:
            self.seed()
        return x * (2 * self.draw() - 1)


class Wrapped(list):
    """A list with an attribute."""


def weakly_kept() -> weakref.WeakKeyDictionary:
    kept = weakref.WeakKeyDictionary()
    kept.key = nn.Identity()  # alive as long as the dictionary
    return kept


def with_gradient() -> torch.Tensor:
    return torch.zeros(1)


def with_buffer() -> nn.Module:
    held = nn.Module()
    held.register_buffer("seen", torch.zeros(1))
    return held


def grown() -> Callable[[int], int]:
    """A full cache: each new entry replaces an old one."""
    cached = functools.lru_cache(maxsize=1)(lambda number: number)
    cached(0)
    return cached


KEEPERS = {
    "array.array": Keeper(lambda: array.array("d", [0.0]), lambda kept: kept.append(1.0), lambda kept: len(kept) > 1),
    "attribute of a list": Keeper(Wrapped, lambda kept: setattr(kept, "seen", 1), lambda kept: vars(kept)),
    "buffer": Keeper(with_buffer, lambda kept: kept.seen.data.fill_(1), lambda kept: kept.seen[0]),
    "cache that is full": Keeper(grown, lambda kept: kept(1), lambda kept: kept.cache_info().misses > 1),
    "class of an object": Keeper(
        Wrapped,
        lambda kept: setattr(kept, "__class__", type("Other", (Wrapped,), {})),
        lambda kept: type(kept) is not Wrapped,
    ),
    "collections.Counter": Keeper(collections.Counter, lambda kept: kept.update(seen=1), lambda kept: kept["seen"]),
    "context variable": Keeper(
        lambda: contextvars.ContextVar("seen", default=0), lambda kept: kept.set(1), lambda kept: kept.get()
    ),
    "ctypes": Keeper(lambda: ctypes.c_int(0), lambda kept: setattr(kept, "value", 1), lambda kept: kept.value),
    "data set": Keeper(
        lambda: TensorDataset(torch.zeros(1)), lambda kept: setattr(kept, "seen", 1), lambda kept: hasattr(kept, "seen")
    ),
    "data set's tensor": Keeper(
        lambda: TensorDataset(torch.zeros(1)), lambda kept: kept.tensors[0].add_(1), lambda kept: kept[0][0]
    ),
    "gradient of a tensor": Keeper(
        with_gradient, lambda kept: setattr(kept, "grad", torch.ones(1)), lambda kept: kept.grad is not None
    ),
    "io.StringIO": Keeper(io.StringIO, lambda kept: kept.write("seen"), lambda kept: kept.tell()),
    "iterator of a list": Keeper(lambda: iter([0, 1]), next, lambda kept: kept.__length_hint__() < 2),
    "itertools.count": Keeper(itertools.count, next, lambda kept: repr(kept) != "count(0)"),
    "key of a dictionary": Keeper(
        lambda: {Holds(): 1}, lambda kept: setattr(next(iter(kept)), "seen", True), lambda kept: next(iter(kept)).seen
    ),
    "lock": Keeper(threading.Lock, lambda kept: kept.acquire(blocking=False), lambda kept: kept.locked()),
    "logger": Keeper(lambda: logging.Logger("of the zoo"), lambda kept: kept.setLevel(7), lambda kept: kept.level == 7),
    "memoryview": Keeper(lambda: memoryview(bytearray(1)), lambda kept: kept.__setitem__(0, 1), lambda kept: kept[0]),
    "array of objects": Keeper(
        lambda: np.array([[], None], dtype=object), lambda kept: kept[0].append(1), lambda kept: kept[0]
    ),
    "optimizer": Keeper(
        lambda: torch.optim.SGD([torch.zeros(1)], lr=0.1),
        lambda kept: kept.param_groups[0].update(lr=1.0),
        lambda kept: kept.param_groups[0]["lr"] == 1.0,
    ),
    "queue.Queue": Keeper(queue.Queue, lambda kept: kept.put(1), lambda kept: kept.qsize()),
    "queue.SimpleQueue": Keeper(queue.SimpleQueue, lambda kept: kept.put(1), lambda kept: kept.qsize()),
    "seed of a generator": Keeper(
        lambda: torch.Generator().manual_seed(4),
        lambda kept: kept.manual_seed(9),
        lambda kept: kept.initial_seed() == 9,
    ),
    "memory of a tensor": Keeper(
        lambda: [one := torch.zeros(1), one.data_ptr()],
        lambda kept: setattr(kept[0], "data", torch.zeros(1)),
        lambda kept: kept[0].data_ptr() != kept[1],
    ),
    "shape of a tensor": Keeper(
        lambda: torch.zeros(1), lambda kept: setattr(kept, "data", torch.zeros(2)), lambda kept: kept.numel() > 1
    ),
    "SimpleNamespace": Keeper(
        lambda: types.SimpleNamespace(seen=0), lambda kept: setattr(kept, "seen", 1), lambda kept: kept.seen
    ),
    "state of random.Random": Keeper(
        lambda: random.Random(5), lambda kept: kept.seed(6), lambda kept: kept.getstate() == random.Random(6).getstate()
    ),
    "threading.Event": Keeper(threading.Event, lambda kept: kept.set(), lambda kept: kept.is_set()),
    "weak dictionary": Keeper(weakly_kept, lambda kept: kept.__setitem__(kept.key, 1), lambda kept: len(kept)),
}


class Holds:
    """An object used as the key of a dictionary."""

    seen = False


DRAWN = {
    "torch": (lambda: torch.manual_seed(3), lambda: float(torch.rand(()))),
    "NumPy": (lambda: np.random.seed(3), np.random.random),
    "Python": (lambda: random.seed(3), random.random),
    "one more of torch": (lambda: torch.rand(()), lambda: float(torch.rand(()))),
}

_KEPT = partial(Member, kind="number kept", steps=2)

MEMBERS = [
    *(
        _KEPT(
            name,
            coupled=layered(partial(Remembers, keeper, True)),
            benign=layered(partial(Remembers, keeper, False))
            if name not in ("itertools.count", "queue.SimpleQueue")
            else None,
            pair=one_more_first,
            engine="loop",
            one_sided=name in ("buffer", "itertools.count"),  # refused once they have changed
        )
        for name, keeper in KEEPERS.items()
    ),
    *(
        _KEPT(
            f"generator of {name}",
            coupled=layered(partial(Draws, seed, draw, True)),
            benign=layered(partial(Draws, seed, draw, False)),
            pair=one_replaced,
            engine="loop",
        )
        for name, (seed, draw) in DRAWN.items()
    ),
]
