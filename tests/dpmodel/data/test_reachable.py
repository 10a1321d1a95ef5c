import functools
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Subset
from torch.utils.weak import WeakTensorKeyDictionary
from torchvision.transforms import Compose

from dpmodel.claims.claim import Claim
from dpmodel.data.reachable import MAX_OBJECTS, reachable
from dpmodel.statistics import Standardise
from monitors import Ledger

AT_MODULE_LEVEL = random.Random(0)


def draws_from_a_global(x):
    return [AT_MODULE_LEVEL.random() for _ in x]


def calls_another(x):
    return draws_from_a_global(x)


class Holder:
    def __init__(self, held):
        self.held = held

    def method(self):
        return self.held


class Slotted:
    __slots__ = ("held",)

    def __init__(self, held):
        self.held = held


class OnTheClass:
    generator = AT_MODULE_LEVEL


def closure_over(value):
    return lambda: value


PLACES = {
    "attribute": Holder,
    "slot": Slotted,
    "nested containers": lambda value: {"a": [(1, {"b": value})]},
    "closure": closure_over,
    "default argument": lambda value: lambda x, drawn=value: drawn,
    "partial": lambda value: functools.partial(print, 1, key=value),
    "bound method": lambda value: Holder(value).method,
    "compose": lambda value: Compose([torch.relu, Holder(value)]),
    "subset of a subset": lambda value: Subset(Subset(Holder(value), [0]), [0]),
    "concatenation": lambda value: ConcatDataset([[1], Subset(Holder(value), [0])]),
    "beside a long list": lambda value: Holder([list(range(10**5)), [("path", 3)] * 10**5, value]),
    "long list of objects": lambda value: [Holder(None)] * 200 + [Holder(value)],
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES.keys())
def test_objects_are_found_wherever_they_are_kept(place):
    value = random.Random(1)
    assert any(found is value for found in reachable(place(value)))


@pytest.mark.parametrize("root", [draws_from_a_global, calls_another, OnTheClass(), lambda: calls_another(1)])
def test_globals_that_functions_and_classes_name_are_found(root):
    assert any(found is AT_MODULE_LEVEL for found in reachable(root))


def test_cycles_and_large_structures_end_the_search():
    circle = [Holder(None)]
    circle[0].held = circle
    assert sum(found is circle for found in reachable(circle)) == 1
    assert len(reachable([[Holder(None)] for _ in range(2 * MAX_OBJECTS)])) == MAX_OBJECTS


def test_objects_that_fail_when_accessed_are_skipped():
    class Broken(dict):
        def values(self):
            raise RuntimeError("not now")

    value = random.Random(1)
    assert any(found is value for found in reachable([Broken(), value]))


def test_objects_of_a_class_that_cannot_be_hashed_are_searched():
    class Compared(type):
        def __eq__(cls, other):
            return cls is other

    class Odd(metaclass=Compared):
        pass

    odd, inside, after = Odd(), random.Random(1), random.Random(2)
    odd.held = inside
    found = reachable([odd, after])
    assert any(value is inside for value in found)
    assert any(value is after for value in found)


features = random.Random(1)
table = random.Random(2)


class _Named:
    features = None

    def forward(self):
        return self.features, [table for _ in range(2)]


def test_attributes_are_no_globals_of_the_same_name():
    found = reachable(_Named())
    assert table in found
    assert features not in found


def test_what_this_library_knows_of_other_trainings_is_not_reached():
    network = Standardise(torch.zeros(2), torch.ones(2), ledger=Ledger())
    assert not [value for value in reachable(network) if isinstance(value, (Claim, WeakTensorKeyDictionary))]


@pytest.mark.parametrize(
    ("kind", "make"),
    [(list, torch.zeros), (tuple, np.zeros), (set, torch.zeros), (lambda values: dict(enumerate(values)), np.zeros)],
)
def test_tensors_and_arrays_of_long_containers_are_found_if_asked_for(kind, make):
    values = [make(2) for _ in range(60)]
    holder = SimpleNamespace(bank=kind(values))
    assert all(value is not values[40] for value in reachable(holder))
    assert any(value is values[40] for value in reachable(holder, data=True))
    assert reachable([1.0] * 100, data=True)[1:] == []
