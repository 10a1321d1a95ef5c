import inspect
import sys

import pytest

from monitors.arguments import accepted_names
from monitors.signatures import signature


def named_for_type_checkers_only():
    """A function with an annotation that cannot be evaluated, as a user may write it from Python 3.14 on."""
    annotation = "Missing" if sys.version_info >= (3, 14) else "'Missing'"
    scope = {}
    exec(f"def function(first: {annotation}, *, second: {annotation} = 1): ...", scope)
    return scope["function"]


def test_the_parameters_of_a_function_are_known_whatever_its_annotations_refer_to():
    function = named_for_type_checkers_only()
    assert list(signature(function).parameters) == ["first", "second"]
    assert signature(function).bind(1, second=2).arguments == {"first": 1, "second": 2}
    assert accepted_names(function) == ["first", "second"]


def test_it_is_the_signature_of_the_standard_library():
    def function(a, /, b, *rest, c=1, **others): ...

    assert signature(function) == inspect.signature(function)


@pytest.mark.parametrize(("value", "error"), [(1, TypeError), (dict.update, ValueError)])
def test_what_has_no_signature_is_refused_as_in_the_standard_library(value, error):
    with pytest.raises(error):
        inspect.signature(value)
    with pytest.raises(error):
        signature(value)
