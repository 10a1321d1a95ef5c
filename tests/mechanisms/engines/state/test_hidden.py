"""Objects that may change without notice are told from those that cannot."""

from __future__ import annotations

import array
import ctypes
import enum
import itertools
import logging
import math
import threading
import types
from collections import OrderedDict, defaultdict
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import pytest
import torch
from torch import nn

from mechanisms.engines.state.python_state import PythonState

T = TypeVar("T")


class Numbers(torch.utils.data.Dataset):
    scale = 1.0


class Choice(enum.Enum):
    ONE = 1


class Pair(NamedTuple):
    first: float = 1.0


@dataclass(frozen=True)
class Settings:
    choice: Choice = Choice.ONE
    pair: Pair = field(default_factory=Pair)


class Typed(nn.Module, Generic[T]):
    width: int = 1

    @property
    def one(self) -> T:
        return self.width

    @cached_property
    def two(self):
        return 2

    @lru_cache  # noqa: B019
    def three(self):
        return 3

    @staticmethod
    def four():
        return math.pi


class Holding(nn.Module):
    def __init__(self, held):
        super().__init__()
        self.held = held


MAY_CHANGE = {
    "iterator": itertools.count(),
    "generator": (number for number in (1, 2)),
    "proxy": types.MappingProxyType({"scale": 1.0}),
    "view": {"scale": 1.0}.values(),
    "array": array.array("d", [1.0]),
    "ctypes": ctypes.c_double(1.0),
    "event": threading.Event(),
    "data set": Numbers(),
    "sparse": torch.eye(2).to_sparse(),
}
NEVER = {
    "settings": Settings(),
    "pair": Pair(),
    "choice": Choice.ONE,
    "path": Path(),
    "lock": threading.Lock(),
    "logger": logging.getLogger(),
    "numpy": np.ones(2),
    "number": np.float32(1.0),
    "type variable": T,
    "generator of numbers": torch.Generator(),
    "partial": partial(nn.functional.leaky_relu, negative_slope=0.1),
    "containers": [OrderedDict(one=1), defaultdict(list), {1}, (2,), frozenset()],
    "typed": Typed(),
    "local": threading.local(),
    "layers": nn.TransformerEncoderLayer(4, 2, 4),
}


@pytest.mark.parametrize("held", MAY_CHANGE.values(), ids=MAY_CHANGE.keys())
def test_what_may_change_unnoticed_is_opaque(held):
    assert set(PythonState(Holding(held)).opaque) == {"Holding.held"}


@pytest.mark.parametrize("held", NEVER.values(), ids=NEVER.keys())
def test_what_is_followed_or_never_changes_is_not_opaque(held):
    assert PythonState(Holding(held)).opaque == []


def test_what_a_bound_method_of_a_container_reads_is_followed():
    numbers = {"scale": 1.0}
    state = PythonState(Holding(numbers.get))
    assert state.is_current()
    numbers["scale"] = 2.0
    assert not state.is_current()
