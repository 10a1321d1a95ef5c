"""Places that hold a value are compared and restored, also those that were empty."""

import pytest

from mechanisms.engines.state.places import Function, GlobalNames, Place, Slot


class Slotted:
    __slots__ = ("given", "unset")

    def __init__(self):
        self.given = [1]


def cell_of(value):
    return (lambda: value).__closure__[0]


@pytest.mark.parametrize(
    ("owner", "key"), [(Slotted(), "given"), (Slotted(), "unset"), (cell_of([1]), "cell_contents")]
)
def test_a_slot_and_a_cell_are_restored_or_emptied_again(owner, key):
    place = Slot("place", owner, key)
    before = place.value
    setattr(owner, key, [1])  # an equal value in a different object
    assert not place.is_current()
    assert place.put_back() == ["place"]
    assert place.is_current()
    assert place.value is before


def test_an_equal_number_in_a_place_is_no_change():
    held = {"a": 10.0**20}
    place = Place("a", lambda: held["a"], lambda value: held.update(a=value))
    held["a"] = float("1e20")
    assert place.is_current()
    held["a"] = 10**20
    assert not place.is_current()
    place.put_back()
    assert type(held["a"]) is float


@pytest.mark.parametrize(
    ("key", "value"),
    [("__defaults__", (2,)), ("__kwdefaults__", {"c": 5}), ("__code__", (lambda a, b=1, *, c=3: a).__code__)],
)
def test_the_parts_of_a_function_are_restored(key, value):
    def function(a, b=1, *, c=3):
        return a + b + c

    state = Function("function", function)
    assert state.is_current()
    setattr(function, key, value)
    assert not state.is_current()
    assert state.put_back() == [f"function.{key}"]
    assert state.is_current()
    assert function(1) == 5


def test_global_names_are_restored_and_new_ones_deleted():
    kept = [1]
    names = {"kept": kept, "gone": 2, "number": 10.0**20, "other": 0}
    state = GlobalNames(names)
    assert [*state.add(["kept", "gone", "number", "absent"])] == [("kept", kept), ("gone", 2), ("number", 10.0**20)]
    assert [*state.add(["kept"])] == []
    names["number"] = float("1e20")  # an equal one
    names["other"] = 1  # not included
    assert state.is_current()
    names.update(kept=[1], absent=0)
    del names["gone"]
    assert not state.is_current()
    assert state.put_back() == ["kept", "gone", "absent"]
    assert state.is_current()
    assert names["kept"] is kept
    assert "absent" not in names
