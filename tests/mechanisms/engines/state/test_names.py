import sys

from mechanisms.engines.state.names import assigned_names, mentioned_names, read_names

FEATURES = [0]


def by_attribute(network):
    return network.FEATURES


def by_name():
    return [FEATURES for _ in range(2)]


def looked_up():
    return vars(sys.modules[__name__])["FEATURES"]


def assigned():
    global FEATURES

    def inner():
        global OTHERS
        OTHERS = 1

    FEATURES = inner()


def test_names_of_attributes_are_not_names_of_globals():
    assert "FEATURES" not in read_names(by_attribute.__code__)
    assert "FEATURES" in mentioned_names(by_attribute.__code__)


def test_names_that_are_read_or_looked_up_are_found_even_in_nested_functions():
    assert "FEATURES" in read_names(by_name.__code__)
    assert "FEATURES" in read_names(looked_up.__code__)


def test_names_that_are_assigned_are_found_even_in_nested_functions():
    assert assigned_names(assigned.__code__) == {"FEATURES", "OTHERS"}


def test_names_in_annotations_of_an_inner_class_are_found():
    """Python 3.14 has instructions of its own for them."""
    scope = {}
    exec("def make():\n    class Kept:\n        seen: LOG.append(1)\n    return Kept.__annotations__", scope)
    assert "LOG" in read_names(scope["make"].__code__)
