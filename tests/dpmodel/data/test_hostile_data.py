"""Data files that would hang, exhaust memory or run code."""

import gzip
import io
import os
import struct
import zipfile
from functools import partial

import numpy as np
import pytest
from PIL import Image

from dpmodel.data import load_dataset
from dpmodel.data.idx import read_idx
from dpmodel.data.npz import npz
from monitors.errors import DataError


def header(*sizes, kind=0x08):
    return bytes([0, 0, kind, len(sizes)]) + b"".join(struct.pack(">I", size) for size in sizes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(header(2) + b"\0" * 50_000_000, mtime=0), "states 2 bytes of data for shape .* but has more"),
        (gzip.compress(header(2) + b"\0" * 2, mtime=0)[:-6], "is damaged or cannot be read"),
        (header(2**32 - 1, 2**32 - 1, 2**32 - 1) + b"\0", "but has only 1"),
        (b"\0\0\x08\xff" + b"\xff" * 1020 + b"\0", "but has only 1"),
        (header(2, kind=0x42) + b"\0\0", "is not an IDX file"),
        (b"\0\0\x08\x03\0\0", "ends within its header"),
    ],
)
def test_an_idx_file_gives_what_its_header_states_or_is_refused(tmp_path, content, message):
    path = tmp_path / "images"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_idx(path)


@pytest.mark.parametrize("read", [read_idx, npz])
@pytest.mark.parametrize("make", [lambda path: os.mkfifo(path), lambda path: path.symlink_to("/dev/zero")])
def test_a_pipe_or_device_is_not_read(tmp_path, read, make):
    make(tmp_path / "data")
    with pytest.raises(DataError, match="not a regular file"):
        read(tmp_path / "data")


def archive(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as stream:
        for name, content in members.items():
            stream.writestr(f"{name}.npy", content)
    return path


def array(values, shape=None, descr=None):
    text = io.BytesIO()
    np.lib.format.write_array(text, np.asarray(values))
    content = text.getvalue()
    if shape is not None:
        text = io.BytesIO()
        stated = {"descr": descr or "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(text, stated)
        content = text.getvalue() + b"\0" * 16
    return content


@pytest.mark.parametrize(
    ("x_train", "message"),
    [
        (array(0, (2**40, 28, 28)), r"x_train states 862,017,116,176,384 bytes for shape"),
        (array(0, (2**62, 2**62)), "x_train states"),
        (array(0, (16,), "|O"), "x_train holds Python objects"),
        (array(0, (1,), "|S1000000000"), "x_train states 1,000,000,000 bytes"),
        (b"\x93NUMPY\x09\x00" + b"\0" * 100, "x_train has the unknown format"),
        (b"not an array", "is not a readable .npz archive"),
        (b"", "is not a readable .npz archive"),
    ],
)
def test_an_npz_array_has_the_bytes_that_its_shape_states(tmp_path, x_train, message):
    rest = {key: array(np.zeros(16, dtype=np.int64)) for key in ("y_train", "x_test", "y_test")}
    with pytest.raises(DataError, match=message) as caught:
        npz(archive(tmp_path / "data.npz", x_train=x_train, **rest))
    assert "\n" not in str(caught.value)


def test_a_zip_bomb_in_an_array_that_is_not_read_costs_nothing(tmp_path):
    content = {key: np.zeros((4, 3), dtype=np.float32) for key in ("x_train", "x_test")}
    content |= {key: np.zeros(4, dtype=np.int64) for key in ("y_train", "y_test")}
    path = archive(tmp_path / "data.npz", bomb=b"\0" * 10_000_000, **{key: array(v) for key, v in content.items()})
    assert npz(path).x_train.shape == (4, 3)


def folder(tmp_path, write):
    for part in ("train", "test"):
        (tmp_path / part / "cat").mkdir(parents=True)
        write(tmp_path / part / "cat" / "1.png")
    return tmp_path


def bomb(path, side=10_000):
    Image.new("1", (side, side)).save(path)


def postscript(path):
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    ("write", "message"),
    [
        (bomb, "it states 10,000 x 10,000 pixels, more than 67,108,864"),
        (partial(bomb, side=20_000), "exceeds limit"),
        (postscript, "cannot identify image file"),
        (lambda path: os.mkfifo(path), "not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
        (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n"), "cannot be read"),
    ],
)
def test_an_image_is_a_regular_file_of_bounded_size(tmp_path, write, message):
    with pytest.raises(DataError, match=message) as caught:
        load_dataset("image_folder", root=str(folder(tmp_path, write)))
    assert "cat/1.png" in str(caught.value)
