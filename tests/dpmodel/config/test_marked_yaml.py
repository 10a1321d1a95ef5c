import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dpmodel.config.marked_yaml import read_yaml
from monitors.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("6E3", 6000.0),
        ("-1e+2", -100.0),
        ("0.5", 0.5),
        (".5", 0.5),
        ("1.", 1.0),
        ("12", 12),
        ("on", True),
    ],
)
def test_numbers_are_read_as_people_mean_them(text, value):
    read = read_yaml(f"key: {text}", "a.yaml").values["key"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize("text", ["e5", "1e", "'1e-5'", "1e-5 m", "v1.0"])
def test_text_stays_text(text):
    assert isinstance(read_yaml(f"key: {text}", "a.yaml").values["key"], str)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_is_read_back_in_every_spelling(number):
    for spelling in (repr(number), f"{number:.17e}", f"{number:.17E}"):
        read = read_yaml(f"key: {spelling}", "a.yaml").values["key"]
        assert isinstance(read, float)
        assert math.isclose(read, number, rel_tol=1e-15)


def test_a_value_knows_its_line():
    marks = read_yaml("a: 1\nb:\n  c: 2\n  d:\n    - x\n    - {e: 3}\n", "a.yaml").marks
    assert marks["b", "c"] == "a.yaml:3"
    assert marks["b", "d", 1, "e"] == "a.yaml:6"


def test_a_duplicate_key_is_refused_with_both_lines():
    with pytest.raises(ConfigError, match=r"a\.yaml:3: the key 'x' is given twice \(first on line 2\)"):
        read_yaml("s:\n  x: 1\n  x: 2\n", "a.yaml")


@pytest.mark.parametrize(
    "value",
    ["!!python/object/apply:os.system ['true']", "!!python/name:os.system", "!!python/object:os.X {a: 1}", "!my x"],
)
def test_a_tag_that_is_not_plain_data_is_refused(value):
    with pytest.raises(ConfigError, match=r"a\.yaml:1: .*(python|!my)"):
        read_yaml(f"a: {value}", "a.yaml")


@pytest.mark.parametrize("text", ["a: [1, 2", "a:\n\tb: 1", "a: b: c", "{", "a: &x\n  b: *y"])
def test_broken_yaml_is_refused_with_its_line(text):
    with pytest.raises(ConfigError, match=r"a\.yaml:\d+: not valid YAML"):
        read_yaml(text, "a.yaml")


def test_a_second_document_is_refused_in_a_whole_sentence():
    with pytest.raises(
        ConfigError, match=r"a\.yaml:2: not valid YAML: expected a single document.*, but found another"
    ):
        read_yaml("a: 1\n---\nb: 2\n", "a.yaml")


def test_an_alias_that_refers_to_itself_is_refused():
    with pytest.raises(ConfigError, match="the alias refers to itself"):
        read_yaml("a: &x\n  b: *x", "a.yaml")


def test_a_key_that_is_not_text_is_refused():
    with pytest.raises(ConfigError, match=r"a\.yaml:1: a key must be text, got 1"):
        read_yaml("1: a", "a.yaml")


def test_merge_keys_work_and_own_keys_win():
    values = read_yaml("base: &b {x: 1, y: 2}\nother:\n  <<: *b\n  y: 3\n", "a.yaml").values
    assert values["other"] == {"x": 1, "y": 3}


def test_an_empty_document_has_no_settings():
    assert read_yaml("# nothing\n", "a.yaml").values == {}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text("abcxyz 123", max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, max_size=3)
        ),
        max_leaves=8,
    )
)
def test_reading_agrees_with_pyyaml(value):
    text = yaml.safe_dump({"key": value})
    assert read_yaml(text, "a.yaml").values == {"key": value}
