from __future__ import annotations

import functools
import importlib
import itertools
import random
import sys
from collections import OrderedDict, deque
from contextvars import ContextVar
from functools import partial
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mechanisms.engines.state.holders import NewNames
from mechanisms.engines.state.python_state import PythonState

SEEN: list[object] = []
MEAN = 0.0


class Slotted:
    __slots__ = ("value",)

    def __init__(self):
        self.value = 1


class Keeping(nn.Module):
    log: list[object] = []  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.calls, self.none = 0, None
        self.empty, self.queue, self.held, self.chosen = [], deque([1], maxlen=3), {"a": [1], 2: 3}, {1}
        self.plain, self.numbers = torch.zeros(2), np.zeros(2)
        self.ordered, self.slotted, self.bytes = OrderedDict(a=1), Slotted(), bytearray(b"ab")

    def forward(self, x):
        return self.layer(x)


@functools.lru_cache
def cached(size):
    return torch.ones(size)


def counting():
    seen, mean = [], 0.0

    def loss(outputs, targets, kept=[0.0]):  # noqa: B006
        nonlocal mean
        mean = float(outputs.detach().mean())
        seen.append(mean)
        kept[0] += mean
        loss.total = mean
        return outputs.sum()

    return loss


def in_globals(outputs, targets):
    global MEAN
    MEAN = float(outputs.detach().mean())
    SEEN.append(MEAN)
    cached(3)
    return outputs.sum()


CHANGES = {
    "attribute": lambda m: setattr(m, "calls", 5),
    "new attribute": lambda m: setattr(m, "shift", torch.ones(2)),
    "removed attribute": lambda m: delattr(m, "none"),
    "empty list": lambda m: m.empty.append(1),
    "deque": lambda m: m.queue.append(2),
    "dict": lambda m: m.held.update(b=1),
    "dict key": lambda m: m.held.pop(2),
    "nested list": lambda m: m.held["a"].append(2),
    "set": lambda m: m.chosen.add(2),
    "tensor": lambda m: m.plain.add_(1),
    "array": lambda m: np.add(m.numbers, 1, out=m.numbers),
    "order": lambda m: m.ordered.move_to_end("a") or m.ordered.update(b=1),
    "slot": lambda m: setattr(m.slotted, "value", 2),
    "bytes": lambda m: m.bytes.append(1),
    "class attribute": lambda m: setattr(Keeping, "count", 1),
    "class list": lambda m: Keeping.log.append(1),
    "attribute of a layer": lambda m: setattr(m.layer, "attention", torch.ones(2)),
    "hook": lambda m: m.layer.register_forward_hook(lambda *args: None),
    "module": lambda m: setattr(m, "layer", nn.Linear(2, 3)),
    "buffer": lambda m: m.register_buffer("mean", torch.ones(2)),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("by_value", [False, True])
def test_changed_state_is_named_and_restored(change, by_value):
    network = Keeping()
    state = PythonState(network, by_value=by_value or change == "array")
    before = {key: repr(value) for key, value in vars(network).items()}
    assert state.is_current()
    CHANGES[change](network)
    assert not state.is_current()
    assert state.restore()
    assert state.is_current()
    assert {key: repr(value) for key, value in vars(network).items()} == before
    assert not hasattr(Keeping, "count")
    assert not Keeping.log
    assert state.restore() == []


def test_writes_to_data_are_found_by_value():
    network = Keeping()
    state = PythonState(network, by_value=True)
    network.plain.data.add_(1)
    assert state.restore() == ["Keeping.plain"]
    assert not network.plain.any()


@pytest.mark.parametrize(
    "numbers", [np.ma.masked, np.ma.masked_array([1.0, 2.0], [True, False])], ids=["constant", "array"]
)
def test_masked_arrays_are_compared_without_changing_them(numbers):
    network = Keeping()
    network.numbers = numbers
    state = PythonState(network, by_value=True)
    assert state.is_current()
    assert network.numbers is numbers
    if numbers is not np.ma.masked:
        network.numbers.mask[1] = True
        assert "Keeping.numbers" in state.restore()
        assert network.numbers.mask.tolist() == [True, False]


@pytest.mark.parametrize("folder", ["site-packages", "dist-packages"])
def test_packages_installed_elsewhere_are_not_followed(folder, tmp_path, monkeypatch):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "installed_elsewhere.py").write_text(
        "seen = []\ndef loss(outputs, targets):\n    seen.append(1)\n    return outputs.sum()\n"
    )
    monkeypatch.syspath_prepend(tmp_path / folder)
    loss = importlib.import_module("installed_elsewhere").loss
    state = PythonState(loss)
    loss(torch.ones(2), None)
    monkeypatch.delitem(sys.modules, "installed_elsewhere")
    assert state.restore() == []


def test_closures_defaults_and_attributes_of_a_function_are_followed():
    loss = counting()
    state = PythonState(partial(loss, kept=[1.0]), loss)
    loss(torch.ones(2), None)
    assert {"loss.mean", "loss.seen", "loss.total"} <= set(state.restore())
    assert not hasattr(loss, "total")
    assert loss.__defaults__ == ([0.0],)
    assert all(cell.cell_contents in ([], 0.0, loss) for cell in loss.__closure__)


def test_globals_that_a_function_mentions_and_caches_are_followed():
    state = PythonState(in_globals)
    in_globals(torch.ones(2), None)
    assert {"SEEN", "MEAN"} <= set(state.restore())
    assert (SEEN, MEAN, cached.cache_info().currsize) == ([], 0.0, 0)


def test_an_equal_but_different_object_is_not_reported_as_a_change():
    network = Keeping()
    network.calls = 10**6
    state = PythonState(network)
    network.calls = int("1000000")
    assert state.restore() == []


def test_parameters_and_buffers_are_ignored_and_so_are_data_sets_unless_by_value():
    network = Keeping()
    network.data = torch.utils.data.TensorDataset(torch.zeros(3))
    state = PythonState(network, by_value=True)
    with torch.no_grad():
        network.layer.weight.add_(1)
    assert state.restore() == []
    state = PythonState(network, by_value=True, weights=True)
    network.layer.weight.data.add_(1)
    assert state.restore() == ["layer.weight"]
    state = PythonState(network)
    network.data.tensors[0].add_(1)
    assert state.restore() == []


def test_state_that_is_too_large_to_follow_is_reported():
    network = Keeping()
    network.objects = [[number] for number in range(60_000)]
    assert not PythonState(network).complete
    network = Keeping()
    network.table = torch.zeros(70 * 2**18)
    assert not PythonState(network).complete
    assert PythonState(Keeping()).complete


def test_a_running_generator_is_named_if_values_can_be_read():
    network = Keeping()
    network.means = (number for number in range(3))
    assert PythonState(network, by_value=True).unfollowed == ["Keeping.means"]
    assert PythonState(network).unfollowed == []


def assigning(outputs, targets):
    global FIRST_ASSIGNED_IN_A_PASS
    FIRST_ASSIGNED_IN_A_PASS = 1
    return outputs.sum()


class LateSlot:
    __slots__ = ("late",)


NUMBERS = {
    "slot that was empty": lambda m: setattr(m.slot, "late", 1),
    "attribute of a weight": lambda m: setattr(m.layer.weight, "seen", 1),
    "gradient of a weight": lambda m: setattr(m.layer.weight, "grad", torch.ones(2, 2)),
    "hook of a weight": lambda m: m.layer.weight.register_hook(lambda grad: grad),
    "whether a weight is trained": lambda m: m.layer.weight.requires_grad_(False),
    "strides of a tensor": lambda m: m.square.t_(),
    "memory of a tensor": lambda m: setattr(m.square, "data", torch.eye(2)),
    "flags of an array": lambda m: m.numbers.setflags(write=False),
    "defaults of a function": lambda m: setattr(m.function, "__defaults__", (2,)),
    "default dtype": lambda m: torch.set_default_dtype(torch.float64),
    "class": lambda m: setattr(m, "__class__", type("Other", (type(m),), {})),
}


@pytest.mark.parametrize("change", NUMBERS)
def test_everything_that_can_hold_a_value_is_restored_by_value(change):
    network = Keeping()
    network.slot, network.square = LateSlot(), torch.eye(2)
    network.function = lambda x, factor=1: x
    state = PythonState(network, by_value=True, weights=True)
    NUMBERS[change](network)
    assert not state.is_current()
    assert state.restore()
    assert state.is_current()
    assert not state.kept


def test_names_first_assigned_in_a_pass_are_deleted_after_it():
    state = PythonState(assigning, by_value=True)
    assigning(torch.ones(2), None)
    assert state.restore() == ["FIRST_ASSIGNED_IN_A_PASS"]
    assert "FIRST_ASSIGNED_IN_A_PASS" not in globals()


def test_an_advanced_iterator_is_named():
    network = Keeping()
    network.count = itertools.count()
    state = PythonState(network, by_value=True)
    next(network.count)
    state.restore()
    assert state.kept + state.unfollowed == ["Keeping.count"]


def test_generators_are_listed():
    network = Keeping()
    network.draws = [torch.Generator(), np.random.default_rng(0), random.Random(0), random.SystemRandom()]
    assert {id(value) for value in PythonState(network, by_value=True).generators} == set(map(id, network.draws))


def keeping_in_names(value):
    globals()["NEW_IN_A_PASS"] = value
    torch.new_in_a_pass = value
    F.relu.new_in_a_pass = value


def test_new_names_of_modules_and_attributes_of_their_functions_are_deleted():
    state = PythonState(keeping_in_names, by_value=True)
    keeping_in_names(1.0)
    assert set(state.restore()) == {"NEW_IN_A_PASS", "torch.new_in_a_pass", "relu.new_in_a_pass"}
    assert state.is_current()
    assert not state.kept
    assert "NEW_IN_A_PASS" not in globals()
    assert not hasattr(torch, "new_in_a_pass")
    assert not hasattr(F.relu, "new_in_a_pass")


def test_late_imports_and_warning_registries_are_kept():
    names = {"known": 1}
    held = NewNames("", names)
    names.update(itertools=itertools, __warningregistry__={}, new=2)
    assert not held.is_current()
    assert held.put_back() == ["new"]
    assert list(names) == ["known", "itertools", "__warningregistry__"]
    assert held.is_current()
    names["new"] = names.pop("known")
    assert not held.is_current()


def test_functions_that_packages_load_late_are_kept():
    names = {"known": 1}
    held = NewNames("package", names, (type(keeping_in_names),))
    names.update(late=keeping_in_names, new=2)
    assert held.put_back() == ["package.new"]
    assert "late" in names


@pytest.mark.parametrize("by_value", [False, True])
def test_classes_of_installed_packages_are_restored_on_their_objects(by_value):
    network = nn.Sequential(nn.ReLU(), nn.Tanh())
    state = PythonState(network, by_value=by_value)
    network[0].__class__ = nn.Softsign
    assert not state.is_current()
    assert state.restore() == ["Sequential.0.__class__"]
    assert type(network[0]) is nn.ReLU
    assert state.is_current()


class Kind(type):
    scale = 1.0


CHOSEN = ContextVar("chosen", default=1.0)


class Outside(nn.Module, metaclass=Kind):
    """Reads what lies outside its attributes."""

    def forward(self, x):
        try:
            return x * DEFINED_LATE
        except NameError:
            return x * type(self).scale * CHOSEN.get()


@pytest.mark.parametrize("by_value", [False, True])
@pytest.mark.parametrize("place", ["metaclass", "context", "global"])
def test_what_is_outside_the_attributes_is_restored(place, by_value, monkeypatch):
    network, token = Outside(), CHOSEN.set(1.0)
    state = PythonState(network, by_value=by_value)
    assert state.is_current()
    if place == "metaclass":
        monkeypatch.setattr(Kind, "scale", 3.0)
    elif place == "context":
        CHOSEN.set(3.0)
    else:
        monkeypatch.setitem(globals(), "DEFINED_LATE", 3.0)
    assert not state.is_current()
    state.restore()
    assert state.is_current()
    assert network(torch.ones(())) == 1.0
    CHOSEN.reset(token)


CALLS = 0


@functools.wraps(F.relu)
def counted_relu(x):
    global CALLS
    CALLS += 1
    return F.relu(x)


class Unnamed(nn.Module):
    """A class that names no module."""

    __module__ = 3
    seen = 0
    kept: ClassVar = [0]


@pytest.mark.parametrize("by_value", [False, True])
def test_a_function_that_bears_the_name_of_a_library_is_followed(by_value):
    network = nn.Module()
    network.activation = counted_relu
    state = PythonState(network, by_value=by_value)
    counted_relu(torch.zeros(1))
    assert not state.is_current()


@pytest.mark.parametrize("by_value", [False, True])
@pytest.mark.parametrize("change", [lambda: setattr(Unnamed, "seen", Unnamed.seen + 1), lambda: Unnamed.kept.append(1)])
def test_a_class_that_names_no_module_is_followed(change, by_value):
    state = PythonState(Unnamed(), by_value=by_value)
    assert state.is_current()
    change()
    assert not state.is_current()
