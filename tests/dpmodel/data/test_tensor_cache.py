import os
import warnings

import pytest
import torch

from dpmodel.data import tensor_cache as module
from dpmodel.data.tensor_cache import TensorCache
from dpmodel.features.extraction import CACHED
from dpmodel.saving.tensor_file import write_tensor_file

FEATURES = torch.rand(10, 3, 2, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART_BYTES", 4 * 6 * 4)
    found = TensorCache(tmp_path, "ab" * 32, 10, CACHED)
    found.write(FEATURES)
    return found


def test_parts_are_joined(cache):
    assert sorted(path.name[-16:] for path in cache.folder.iterdir()) == [f"{k:04d}.safetensors" for k in range(3)]
    assert torch.equal(cache.read(), FEATURES)


def test_a_missing_cache_is_none_without_a_word(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert TensorCache(tmp_path, "cd" * 32, 10, CACHED).read() is None


def _flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _other(path, **changes):
    values = {"kind": "features", "digest": "ab" * 32, "first": 4, "examples": 10, **changes}
    write_tensor_file(path, {"features": torch.rand(4, 3, 2)}, values)


@pytest.mark.parametrize(
    "damage",
    [
        _flip,
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:50]),
        lambda path: _other(path, digest="cd" * 32),
        lambda path: _other(path, first=0),
        lambda path: _other(path, examples=11),
        lambda path: write_tensor_file(path, {}, {"kind": "features"}),
        lambda path: write_tensor_file(
            path,
            {"features": torch.rand(8, 3, 2)},
            {"kind": "features", "digest": "ab" * 32, "first": 4, "examples": 10},
        ),
        lambda path: write_tensor_file(
            path,
            {"features": torch.rand(4, 5)},
            {"kind": "features", "digest": "ab" * 32, "first": 4, "examples": 10},
        ),
        lambda path: path.write_text("x" * 1000),
    ],
)
def test_a_damaged_or_foreign_part_is_not_used(cache, damage):
    damage(cache.path(1))
    with pytest.warns(UserWarning, match=r"the cached features cannot be used: .*They are computed again"):
        assert cache.read() is None
    cache.write(FEATURES)
    assert torch.equal(cache.read(), FEATURES)


def test_what_a_killed_process_left_is_removed_after_a_day(cache):
    old, new = (cache.folder / f".x.safetensors.{digit * 16}.tmp" for digit in "01")
    old.write_text("private")
    new.write_text("being written")
    os.utime(old, (0, 0))
    cache.write(FEATURES)
    assert not old.exists()
    assert new.exists()


def test_an_open_folder_is_closed_to_others(tmp_path):
    (tmp_path / "features").mkdir(mode=0o755)
    TensorCache(tmp_path, "ab" * 32, 10, CACHED).write(FEATURES)
    assert (tmp_path / "features").stat().st_mode & 0o077 == 0


def test_a_folder_of_another_user_is_not_used(cache, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: cache.folder.stat().st_uid + 1)
    assert cache.read() is None
    with pytest.warns(UserWarning, match="not cached: .*the folder belongs to another user"):
        cache.write(FEATURES)


def test_a_folder_that_others_can_write_is_not_read(cache):
    cache.folder.chmod(0o777)
    assert cache.read() is None
    cache.write(FEATURES)
    assert torch.equal(cache.read(), FEATURES)


def test_features_that_cannot_be_written_are_a_warning(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="the features are not cached: "):
        TensorCache(tmp_path / "file", "ab" * 32, 10, CACHED).write(FEATURES)
    assert os.listdir(tmp_path) == ["file"]
