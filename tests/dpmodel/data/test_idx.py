import gzip

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpmodel.data.idx import TYPES, read_idx
from monitors.errors import DataError, MissingDataError


def encoded(values, code):
    header = bytes([0, 0, code, values.ndim]) + np.array(values.shape, dtype=">u4").tobytes()
    return header + values.astype(TYPES[code]).tobytes()


def outcome(path):
    try:
        return read_idx(path, dimensions=3)
    except DataError as error:
        return error


@pytest.fixture
def small_file(tmp_path):
    values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    path = tmp_path / "small.gz"
    path.write_bytes(gzip.compress(encoded(values, 0x08), mtime=0))
    return path, values


@settings(max_examples=60, deadline=None)
@given(
    code=st.sampled_from(sorted(TYPES)),
    shape=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    compressed=st.booleans(),
    seed=st.integers(0, 99),
)
def test_every_type_and_shape_is_read_back(tmp_path_factory, code, shape, compressed, seed):
    values = np.random.default_rng(seed).integers(0, 100, shape).astype(TYPES[code])
    path = tmp_path_factory.mktemp("idx") / "file"
    content = encoded(values, code)
    path.write_bytes(gzip.compress(content) if compressed else content)
    found = read_idx(path, dimensions=len(shape))
    assert found.dtype == values.dtype.newbyteorder("=")
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, values)


def test_the_array_can_be_written_to(small_file):
    found = read_idx(small_file[0])
    found[0] = 0
    assert found[0].sum() == 0


def test_a_truncated_file_of_any_length_is_an_error_that_names_it(small_file):
    path, _ = small_file
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=r"small\.gz"):
            read_idx(path)


def test_a_flipped_byte_anywhere_is_an_error_or_changes_nothing(small_file):
    path, values = small_file
    content = path.read_bytes()
    for at in range(len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 0x55
        path.write_bytes(bytes(damaged))
        found = outcome(path)
        if isinstance(found, DataError):
            assert "small.gz" in str(found)
        else:
            np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "starts with nothing"),
        (b"\x89PNG....", "is not an IDX file: it starts with 89504e47"),
        (encoded(np.zeros((2, 2)), 0x08)[:10], "ends within its header"),
        (encoded(np.zeros((2, 2)), 0x08)[:-1], "has only 3"),
        (encoded(np.zeros((2, 2)), 0x08) + b"x", "has more"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "has only 0"),
    ],
)
def test_damage_is_described(tmp_path, content, message):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_idx(path)


def test_swapped_files_are_recognised(small_file):
    with pytest.raises(DataError, match="has 3 dimensions, expected 1: images and labels may be swapped"):
        read_idx(small_file[0], dimensions=1)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(MissingDataError, match="nowhere does not exist"):
        read_idx(tmp_path / "nowhere")
