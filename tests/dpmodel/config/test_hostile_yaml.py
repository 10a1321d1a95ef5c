"""Configurations that would hang, exhaust memory, run code or mean something else than they say."""

import os

import pytest

from dpmodel.config import load_config, make_config
from dpmodel.config.faults import locating_errors
from dpmodel.config.marked_yaml import MAX_BYTES, read_yaml, read_yaml_file
from dpmodel.config.overrides import parse_override
from monitors.errors import ConfigError

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
MERGES = "a0: &a0 {x: 1, y: 2}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}], z{i}: 1}}\n" for i in range(1, 30)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, r"run.yaml:\d+: more than 20,000 values"),
        ("[" * 5000, "run.yaml:1: not valid YAML: nested deeper than 64 levels"),
        ("".join(" " * level + "a:\n" for level in range(500)), "run.yaml:65: not valid YAML: nested deeper"),
        ("a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 90)), "nested deeper than 64 levels"),
        ("a: &a [*a]", "run.yaml:1: the alias refers to itself"),
        ("a: &a {<<: *a}", "run.yaml:1: not valid YAML: a mapping merges itself"),
        ("a: !!python/object/apply:os.system ['x']", "is not plain data"),
        ("a: !!python/name:os.system x", "is not plain data"),
        ("a: !!binary aGk=", "is not plain data"),
        ("a: !!timestamp 2001", "is not plain data"),
        ("a: !!int abc", "run.yaml:1: 'abc' cannot be read as int"),
        ("a: !!bool 2", "run.yaml:1: '2' cannot be read as bool"),
        (f"a: {'1' * 400}", "run.yaml:1: the integer 111111111111... has 400 characters"),
        ("a: 1\nb: \0", r"run.yaml:2: not valid YAML: the character U\+0000 is not allowed"),
        ("a: \ud800", r"the character U\+D800 is not allowed"),
        ("a:\n\tb: 1", "run.yaml:2: not valid YAML"),
        ("x: &x {a: 1}\ny:\n  <<: *x\n  <<: *x", "run.yaml:4: the key '<<' is given twice"),
        ("x: &x {1: 2}\ny: {<<: *x}", "a key must be text, got 1"),
        ("a: *b", "run.yaml:1: not valid YAML: found undefined alias 'b'"),
    ],
)
def test_hostile_yaml_is_refused_in_one_line_with_its_place(text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        read_yaml(text, "run.yaml")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_merged_keys_are_kept_once_however_often_they_are_merged():
    assert read_yaml(MERGES, "run.yaml").values["a29"] == {"x": 1, "y": 2} | {f"z{i}": 1 for i in range(1, 30)}


@pytest.mark.parametrize(
    ("text", "value"),
    [("0100", "0100"), ("1:30", "1:30"), ("2001-13-45", "2001-13-45"), ("0x10", 16), ("1_000", 1000), ("-0", 0)],
)
def test_scalars_that_old_yaml_reads_in_another_base_or_as_a_date_are_text(text, value):
    assert read_yaml(f"a: {text}", "run.yaml").values == {"a": value}


def test_a_byte_order_mark_is_ignored():
    assert read_yaml("\ufeffa: 1", "run.yaml").values == {"a": 1}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: os.mkfifo(path), "not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
        (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
        (lambda path: path.write_bytes("a: 1".encode("utf-16")), "is not text in UTF-8"),
        (lambda path: path.write_bytes(b"a: " + b"x" * MAX_BYTES), "is larger than"),
        (lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 2**40), "is larger than"),
    ],
)
def test_a_configuration_is_a_regular_text_file_of_bounded_size(tmp_path, make, message):
    path = tmp_path / "run.yaml"
    make(path)
    for read in (load_config, read_yaml_file):
        with pytest.raises(ConfigError, match=f"cannot be read: .*{message}"):
            read(path)


def test_a_path_with_a_nul_character_is_refused():
    with pytest.raises(ConfigError, match="NUL character"):
        load_config("a\0b.yaml")


def test_an_override_of_too_many_keys_is_refused():
    with pytest.raises(ConfigError, match="a path has at most 64 keys, got 1000"):
        parse_override(".".join(["a"] * 1000) + "=1")


@pytest.mark.parametrize("root", ["a\0b", "~nobody-has-this-name/x"])
def test_a_root_that_is_not_a_path_is_refused_or_missing(tmp_path, root):
    path = tmp_path / "run.yaml"
    path.write_text(
        f'data: {{name: npz, root: "{root}"}}\nnetwork: linear\noptimizer: SGD\n'.replace("\0", "\\0")
        + "privacy: {noise_multiplier: 1.0}\ntraining: {epochs: 1, batch_size: 8}\n"
    )
    with pytest.raises(ConfigError, match=r"run.yaml:1: data.root .* is not a path"):
        load_config(path)


def test_a_list_of_very_many_entries_does_not_fill_the_error():
    config = make_config(
        {
            "network": "linear",
            "optimizer": "SGD",
            "privacy": {"noise_multiplier": 1.0},
            "training": {"epochs": 1, "batch_size": 4},
        }
    )
    with pytest.raises(ConfigError, match="data: shape must be") as caught, locating_errors(config, "data"):
        raise ValueError(f"shape must be (channels, height, width), got {('x',) * 5000}")
    assert len(str(caught.value)) < 2000
