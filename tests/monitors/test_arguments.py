import pytest

from monitors.arguments import accepted_names, check_arguments


def build(first, second=1, *, third):
    return first, second, third


def test_all_unknown_names_are_listed_with_the_nearest_of_each():
    with pytest.raises(
        ValueError,
        match=r"'secnd'; did you mean 'second'\?, 'thrid'; did you mean 'third'\? It takes: first, second, third",
    ):
        check_arguments(build, {"first": 1, "secnd": 2, "thrid": 3}, "thing 'x'")


def test_missing_names_are_listed():
    with pytest.raises(ValueError, match="thing 'x' needs the arguments 'first', 'third'"):
        check_arguments(build, {}, "thing 'x'")


def test_arguments_that_the_caller_fills_in_are_neither_needed_nor_allowed():
    check_arguments(build, {"third": 3}, "thing", provided=["first"])
    with pytest.raises(ValueError, match="no argument 'first'"):
        check_arguments(build, {"first": 1, "third": 3}, "thing", provided=["first"])


def test_a_builder_that_accepts_any_argument_is_not_checked():
    check_arguments(lambda **options: options, {"anything": 1}, "thing")
    assert accepted_names(lambda **options: options) is None
