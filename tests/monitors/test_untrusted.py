import json
import os

import pytest

from monitors.untrusted import MAX_DEPTH, MAX_DIGITS, parse_json, read_json, read_text, read_untrusted


def nested(depth):
    return "[" * depth + "]" * depth


def test_what_json_states_is_returned():
    value = {"rows": [{"event": {"kind": "gaussian", "noise_multiplier": 1.5}, "count": 3}], "note": '[[["\\'}
    assert parse_json(json.dumps(value)) == value


def test_nesting_up_to_the_limit_is_read_and_one_level_more_is_refused():
    assert parse_json(nested(MAX_DEPTH)) is not None
    with pytest.raises(ValueError, match=f"deeper than {MAX_DEPTH} levels"):
        parse_json(nested(MAX_DEPTH + 1))
    with pytest.raises(ValueError, match=f"deeper than {MAX_DEPTH} levels"):
        parse_json('{"a":' * 200_000)


def test_integers_up_to_the_limit_are_read_and_longer_ones_are_refused():
    assert parse_json("9" * MAX_DIGITS) == int("9" * MAX_DIGITS)
    with pytest.raises(ValueError, match="of 400 characters is too long"):
        parse_json('{"count": ' + "9" * 400 + "}")


def test_a_file_that_is_not_regular_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/zero", tmp_path / "pipe", tmp_path):
        with pytest.raises(OSError, match=r"not a regular file|directory"):
            read_untrusted(path)


def test_a_file_above_the_limit_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 11)
    assert read_untrusted(tmp_path / "file", limit=11) == b"x" * 11
    with pytest.raises(ValueError, match="larger than 10 bytes"):
        read_untrusted(tmp_path / "file", limit=10)


def test_text_that_is_not_utf_8_and_a_path_with_nul_are_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"a\xff")
    with pytest.raises(ValueError, match=r"not text in UTF-8: .* at byte 1"):
        read_text(tmp_path / "file")
    with pytest.raises(FileNotFoundError, match="NUL"):
        read_text("a\0b")


def test_a_file_of_bad_json_is_named(tmp_path):
    (tmp_path / "file").write_text("{")
    with pytest.raises(ValueError, match="file is not JSON that can be read"):
        read_json(tmp_path / "file")
