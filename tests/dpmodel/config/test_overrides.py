import pytest

from dpmodel.config.marked_yaml import Marked
from dpmodel.config.overrides import apply_overrides, parse_override
from monitors.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a.b=1e-5", 1e-5),
        ("a.b=null", None),
        ("a.b=", None),
        ("a.b=[1, 2]", [1, 2]),
        ("a.b=x=y", "x=y"),
        ("a.b={c: 1}", {"c": 1}),
    ],
)
def test_the_value_is_read_as_yaml(text, value):
    assert parse_override(text) == (("a", "b"), value)


@pytest.mark.parametrize("text", ["epochs", "=3", "a..b=3", "a.=3"])
def test_an_override_without_path_or_value_is_refused(text):
    with pytest.raises(ConfigError, match=r"--set takes path\.to\.key=value"):
        parse_override(text)


def test_overrides_create_missing_keys_and_do_not_change_the_original():
    original = Marked({"a": {"b": 1}})
    changed = apply_overrides(original, ["a.b=2", "c.d.e=3"])
    assert changed.values == {"a": {"b": 2}, "c": {"d": {"e": 3}}}
    assert original.values == {"a": {"b": 1}}


def test_an_override_inside_a_short_form_keeps_the_name():
    assert apply_overrides(Marked({"loss": "mse"}), ["loss.x=1"]).values == {"loss": {"name": "mse", "x": 1}}


def test_entries_of_lists_are_reached_by_number():
    marked = Marked({"callbacks": [{"name": "A"}]})
    assert apply_overrides(marked, ["callbacks.0.name=B"]).values == {"callbacks": [{"name": "B"}]}
    with pytest.raises(ConfigError, match="entries 0 to 0, got '1'"):
        apply_overrides(marked, ["callbacks.1.name=B"])


def test_a_path_through_a_number_is_refused():
    with pytest.raises(ConfigError, match="cannot be set inside 3, which has no keys"):
        apply_overrides(Marked({"a": 3}), ["a.b=1"])


def test_the_place_of_an_override_is_the_override():
    marked = apply_overrides(Marked({"a": {"b": 1}}, {("a",): "f:1", ("a", "b"): "f:2"}), ["a.b=2"])
    assert marked.marks["a", "b"] == "--set a.b=2"
    assert marked.marks["a",] == "f:1"
