"""The cache of decoded images."""

import os
import stat
import threading
import warnings

import PIL
import pytest
from PIL import Image

from dpmodel.data import encoded_images
from dpmodel.data.class_folders import ClassFile, PlainClassFolders
from dpmodel.data.encoded_images import EncodedImages

from .image_files import files, read, same, save, zipped

pytestmark = pytest.mark.usefixtures("cache")


class TestCache:
    def test_a_second_start_decodes_only_what_it_compares(self, pictures, archive, count):
        for source in (pictures, archive):
            first = read(source)
            assert len(count) == 2 * (12 + 1)  # the first image gives the shape
            count.clear()
            assert same(first, read(source))
            assert len(count) == 2 * encoded_images.COMPARED
            count.clear()

    def test_files_are_private(self, pictures, cache):
        read(pictures)
        assert stat.S_IMODE(cache.stat().st_mode) == 0o700
        assert [stat.S_IMODE(path.stat().st_mode) for path in files(cache)] == [0o600, 0o600]

    @pytest.mark.parametrize("off", [None, False])
    def test_it_can_be_turned_off(self, pictures, cache, off):
        read(pictures, cache=off)
        assert not cache.exists()

    def test_it_can_be_elsewhere(self, pictures, cache, tmp_path):
        read(pictures, cache=str(tmp_path / "here"))
        assert not cache.exists()
        assert len(files(tmp_path / "here" / "decoded_images")) == 2

    @pytest.mark.parametrize("wrong", [7, "", ["folder"], "s3://bucket/cache"])
    def test_a_wrong_place_is_refused(self, pictures, wrong):
        with pytest.raises(ValueError, match=r"data\.cache must be a folder, true, or null for no cache, got"):
            read(pictures, cache=wrong)

    def test_a_user_without_a_home_folder_trains_without_it(self, pictures, monkeypatch):
        def nowhere():
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr("dpmodel.data.locations.cache_folder", nowhere)
        with pytest.warns(UserWarning, match="the decoded images are not cached: Could not determine"):
            assert len(read(pictures).train) == 12

    @pytest.mark.parametrize(
        "change",
        [
            lambda root: Image.new("RGB", (4, 5), (9, 9, 9)).save(root / "train/cat/0.png"),
            lambda root: (root / "train/cat/0.png").rename(root / "train/cat/9.png"),
            lambda root: (root / "train/cat/0.png").rename(root / "train/dog/9.png"),
            lambda root: (root / "train/cat/0.png").unlink(),
            lambda root: (root / "train/cat/7.png").write_bytes((root / "train/cat/0.png").read_bytes()),
        ],
    )
    def test_a_changed_folder_is_decoded_anew(self, pictures, tmp_path, change):
        first = read(pictures)
        read(zipped(pictures, tmp_path / "one.zip"))
        change(pictures)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            expected = read(pictures, cache=None)
            assert not same(first, expected)
            assert same(expected, read(pictures))
            (tmp_path / "one.zip").unlink()
            assert same(expected, read(zipped(pictures, tmp_path / "one.zip")))

    def test_a_file_of_the_same_size_and_time_is_noticed(self, pictures):
        for part in ("train", "test"):
            for path in (pictures / part).rglob("*.png"):
                Image.open(path).save(path.with_suffix(".bmp"))
                path.unlink()
        read(pictures)
        path = pictures / "train" / "cat" / "3.bmp"
        known, content = path.stat(), bytearray(path.read_bytes())
        content[-8:] = bytes(8)
        path.write_bytes(content)
        os.utime(path, ns=(known.st_atime_ns, known.st_mtime_ns))
        assert path.stat().st_mtime_ns == known.st_mtime_ns
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of images that differ from the cached ones
            assert same(read(pictures, cache=None), read(pictures))

    def test_two_folders_with_the_same_listing_have_their_own_files(self, pictures, tmp_path, monkeypatch):
        monkeypatch.setattr(PlainClassFolders, "_file", lambda self, entry, name: ClassFile(name, "same", entry.path))
        other = save(tmp_path / "other", size=(4, 5))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert not same(read(pictures), read(other))

    @pytest.mark.parametrize("options", [{"channels": 1}, {"image_size": 8}, {"channels": 1, "image_size": 3}])
    def test_settings_of_decoding_have_their_own_files(self, pictures, cache, options):
        read(pictures)
        assert same(read(pictures, cache=None, **options), read(pictures, **options))
        assert len(files(cache)) == 4

    def test_another_version_of_pillow_decodes_anew(self, pictures, cache, monkeypatch):
        read(pictures)
        monkeypatch.setattr(PIL, "__version__", "99.0")
        read(pictures)
        assert len(files(cache)) == 4

    @pytest.mark.parametrize(
        "damage",
        [
            lambda path: path.write_bytes(path.read_bytes()[:-7]),
            lambda path: path.write_bytes(path.read_bytes()[:-1] + b"?"),
            lambda path: path.write_bytes(b""),
            lambda path: path.write_text("not a tensor"),
        ],
    )
    def test_a_damaged_file_is_made_again_with_a_warning(self, pictures, cache, damage):
        expected = read(pictures)
        for path in files(cache):
            damage(path)
        with pytest.warns(UserWarning, match="the cached decoded images cannot be used: .* They are decoded again"):
            assert same(expected, read(pictures))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert same(expected, read(pictures))

    def test_images_of_other_files_are_found_by_comparing(self, pictures, cache, monkeypatch):
        expected = read(pictures)
        monkeypatch.setattr(EncodedImages, "digest", lambda self: f"same{len(self)}{self.files[0].name[:2]}")
        read(pictures)
        other = save(pictures.parent / "other", size=(4, 5))
        with pytest.warns(UserWarning, match="the cached images are not those in the files. They are decoded again"):
            assert same(read(other, cache=None), read(other))
        assert not same(expected, read(other))

    def test_a_place_that_cannot_be_written_is_a_warning(self, pictures, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.warns(UserWarning, match="not cached: .*Set data.cache to another folder, or to null"):
            assert same(read(pictures, cache=None), read(pictures, cache=tmp_path / "file"))

    def test_a_full_disk_is_a_warning_and_leaves_nothing(self, pictures, cache, monkeypatch):
        def full(handle):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.warns(UserWarning, match="No space left on device"):
            assert same(read(pictures, cache=None), read(pictures))
        assert files(cache) == []

    def test_starts_at_the_same_time_do_not_disturb_each_other(self, pictures, archive, cache):
        expected, found = read(pictures, cache=None), []
        threads = [threading.Thread(target=lambda s=s: found.append(read(s))) for s in (pictures, archive) * 4]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 8
        assert all(same(expected, each) for each in found)
        assert len(files(cache)) == 4
        assert same(expected, read(archive))
