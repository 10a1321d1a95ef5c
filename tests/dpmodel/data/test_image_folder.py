"""Images in class folders and zip archives of them, and the cache of the decoded ones."""

import os
import stat
import threading
import tracemalloc
import warnings
import zipfile

import numpy as np
import PIL
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dpmodel.data import encoded_images, load_dataset
from dpmodel.data.class_folders import ClassFile, PlainClassFolders
from dpmodel.data.encoded_images import EncodedImages
from monitors.errors import DataError, MissingDataError

FORMATS = {".png": "RGB", ".bmp": "L", ".gif": "P", ".jpg": "RGB", ".tif": "RGBA", ".ppm": "RGB"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder of decoded images."""
    monkeypatch.setenv("DPMODEL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "decoded_images"


@pytest.fixture
def count(monkeypatch):
    """Counts the images that are decoded."""
    names, original = [], EncodedImages._image

    def image(self, row):
        names.append(self.files[row].name)
        return original(self, row)

    monkeypatch.setattr(EncodedImages, "_image", image)
    return names


def save(root, number=6, size=(5, 4), classes=("cat", "dog")):
    generator = np.random.default_rng(3)
    for part in ("train", "test"):
        for name in classes:
            (root / part / name).mkdir(parents=True)
            for index in range(number):
                pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{index}.png")
    return root


def zipped(root, path, inside="", order=1):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(root.rglob("*"))[::order]:
            archive.write(file, f"{inside}{file.relative_to(root)}")
    return path


@pytest.fixture
def pictures(tmp_path):
    return save(tmp_path / "pictures")


@pytest.fixture
def archive(pictures, tmp_path):
    return zipped(pictures, tmp_path / "pictures.zip")


def read(root, **options):
    return load_dataset("image_folder", root=root, **options)


def same(one, other):
    parts = ((one.train, other.train), (one.test, other.test))
    equal = all(torch.equal(a.x, b.x) and torch.equal(a.y, b.y) for a, b in parts)
    return equal and one.num_classes == other.num_classes


def files(cache):
    return sorted(cache.iterdir()) if cache.exists() else []


names = st.text(st.characters(codec="ascii", categories=("L", "N")) | st.sampled_from(" -_"), min_size=1, max_size=6)
trees = st.dictionaries(
    names.map(str.strip).filter(bool).filter(lambda name: name.upper() != "__MACOSX"),
    st.lists(st.tuples(st.sampled_from(sorted(FORMATS)), st.integers(0, 255)), min_size=1, max_size=4),
    min_size=1,
    max_size=4,
)


class TestOneContent:
    @settings(max_examples=15, deadline=None)
    @given(
        tree=trees,
        channels=st.sampled_from([1, 3]),
        image_size=st.sampled_from([None, 4, 9]),
        inside=st.sampled_from(["", "pictures/", "deep/er/"]),
        order=st.sampled_from([1, -1]),
    )
    def test_folder_archive_and_cache_give_the_same_bytes_and_labels(
        self, tmp_path_factory, tree, channels, image_size, inside, order
    ):
        place = tmp_path_factory.mktemp("law")
        root = place / "pictures"
        for part in ("train", "test"):
            for name, members in tree.items():
                (root / part / name).mkdir(parents=True, exist_ok=True)
                for number, (ending, grey) in enumerate(members):
                    pixels = Image.fromarray(np.full((6, 7, 3), [grey, number, 255 - grey], dtype=np.uint8))
                    pixels.convert(FORMATS[ending]).save(root / part / name / f"{number}{ending}")
        options = {"channels": channels, "image_size": image_size}
        plain = read(root, cache=None, **options)
        assert plain.train.y.tolist() == [k for k, name in enumerate(sorted(tree)) for _ in tree[name]]
        packed = zipped(root, place / "pictures.zip", inside, order)
        for source in (root, packed):
            fresh, kept = (read(source, cache=place / "cache", **options) for _ in range(2))
            assert same(plain, fresh)
            assert same(plain, kept)
            assert same(plain, read(source, cache=False, **options))

    def test_an_archive_is_not_unpacked(self, archive, tmp_path):
        before = sorted(path for path in tmp_path.rglob("*"))
        read(archive, cache=None)
        assert sorted(path for path in tmp_path.rglob("*")) == before

    @pytest.mark.parametrize("make", [lambda root, path: root, zipped])
    def test_what_is_not_an_image_is_ignored(self, pictures, tmp_path, make):
        clean = read(pictures)
        for name in ("._1.png", ".DS_Store", "notes.txt", ".hidden.png", "Thumbs.db"):
            (pictures / "train" / "cat" / name).write_bytes(b"not an image")
        for folder in ("train/__MACOSX", "train/.git", "test/.cache", "__MACOSX/train/cat", "train/dog/inner.png"):
            (pictures / folder).mkdir(parents=True)
            (pictures / folder / "1.png").write_bytes(b"not an image")
        (pictures / "README.txt").write_text("about the images")
        assert same(clean, read(make(pictures, tmp_path / "noisy.zip")))

    def test_a_folder_beside_a_readme_is_found_in_an_archive(self, pictures, archive, tmp_path):
        (tmp_path / "outer" / "__MACOSX").mkdir(parents=True)
        (tmp_path / "outer" / "LICENSE").write_text("free")
        pictures.rename(tmp_path / "outer" / "pictures")
        assert same(read(archive), read(zipped(tmp_path / "outer", tmp_path / "outer.zip")))


class TestRows:
    @pytest.mark.parametrize("packed", [False, True])
    def test_only_chosen_images_are_decoded(self, pictures, archive, count, packed):
        source = archive if packed else pictures
        data = read(source, limit=3, test_limit=2)
        assert len(set(count)) == 5
        whole = read(source, cache=None)
        assert all(any(torch.equal(row, other) for other in whole.train.x) for row in data.train.x)

    def test_images_held_out_replace_the_test_images_unread(self, pictures, count):
        read(pictures, validation=4)
        assert len(set(count)) == 12
        assert all(name.startswith("train/") for name in count)

    def test_many_rows_are_taken_from_the_cache_of_all(self, pictures, cache, count):
        read(pictures)
        kept, expected = files(cache), read(pictures, cache=None, limit=5, validation=3)
        count.clear()
        assert same(expected, read(pictures, limit=5, validation=3))
        assert len(count) == 5 + 3  # compared with the cached ones
        assert files(cache) == kept

    def test_few_rows_are_decoded_even_if_all_are_cached(self, pictures, cache):
        read(pictures)
        assert same(read(pictures, cache=None, limit=2), read(pictures, limit=2))
        assert len(files(cache)) == 3

    def test_a_limit_has_a_cache_of_its_own(self, pictures, cache, count):
        first = read(pictures, limit=3, test_limit=2)
        assert len(files(cache)) == 2
        assert same(first, read(pictures, limit=3, test_limit=2))

    def test_every_image_is_in_its_row(self, pictures, monkeypatch):
        monkeypatch.setattr(encoded_images, "_TASK", 5)
        for part in (read(pictures, cache=None).train, read(pictures).train):
            for row, name in enumerate(f"{folder}/{index}.png" for folder in ("cat", "dog") for index in range(6)):
                pixels = np.asarray(Image.open(pictures / "train" / name))
                assert np.array_equal(part.x[row].permute(1, 2, 0).numpy(), pixels)

    def test_a_plugin_can_read_late_too(self, monkeypatch):
        from dpmodel.data import RawSplits
        from dpmodel.data.splits import finish_splits

        class Late:
            def __init__(self, rows):
                self.rows = rows

            def __len__(self):
                return len(self.rows)

            def index_select(self, dim, index):
                return Late(self.rows.index_select(dim, index))

            def load(self):
                return torch.stack([self.rows.float(), torch.full((len(self.rows),), bad)], 1)

        y = torch.zeros(9, dtype=torch.long)
        raw = RawSplits(Late(torch.arange(9)), y, Late(torch.arange(9)), y, 1, "made up")
        bad = 0.0
        assert finish_splits("late", raw, limit=4).train.x.shape == (4, 2)
        bad = float("nan")
        with pytest.raises(DataError, match="NaN"):
            finish_splits("late", raw)


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


def write_entries(path, **changes):
    """An archive with one class and one image in each part, and further entries."""
    picture = path.with_suffix(".png")
    Image.new("RGB", (3, 3)).save(picture)
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")  # of zipfile, about the name that is there twice
        for name in ("train/cat/1.png", "test/cat/1.png", *changes.get("names", ())):
            archive.writestr(name, changes.get("content", picture.read_bytes()))
    return path


def outcome(path):
    """The data without a message, or the message of a refusal."""
    try:
        return read(path, cache=None), None
    except DataError as error:
        return None, str(error)


class TestBadArchives:
    @pytest.mark.parametrize(
        "name", ["../cat/1.png", "train/../../1.png", "/train/cat/2.png", "train\\cat\\2.png", "C:/train/cat/2.png"]
    )
    def test_names_that_lead_outside_are_refused(self, tmp_path, name):
        with pytest.raises(DataError, match=r"which is not a path within an archive\. Make it anew"):
            read(write_entries(tmp_path / "a.zip", names=[name]))

    @pytest.mark.parametrize("name", ["train/cat/1.png", "./train//cat/1.png"])
    def test_a_name_that_is_there_twice_is_refused(self, tmp_path, name):
        with pytest.raises(DataError, match=r"1\.png' twice, and it is unclear which one counts"):
            read(write_entries(tmp_path / "a.zip", names=[name]))

    @pytest.mark.parametrize("names", [["1.png", "2.png"], ["train/1.png", "test/1.png"], ["cat/1.png", "dog/1.png"]])
    def test_class_folders_are_required(self, tmp_path, names):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            for name in names:
                archive.writestr(name, b"")
        with pytest.raises(MissingDataError, match="an image folder must contain train/<class>"):
            read(tmp_path / "a.zip")

    def test_a_part_that_is_missing_and_a_class_without_training_images_are_named(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr("train/cat/1.png", b"")
        with pytest.raises(MissingDataError, match=r"test/ in .*a\.zip does not exist"):
            read(tmp_path / "a.zip")
        with pytest.raises(DataError, match=r"test/ in .*a\.zip has the class 'dog', which has no training folder"):
            read(write_entries(tmp_path / "a.zip", names=["test/dog/1.png"]))

    def test_a_password_is_recognised_before_anything_is_read(self, archive):
        content = bytearray(archive.read_bytes())
        at = content.rfind(b"PK\x01\x02")
        content[at + 8] |= 1  # the flag of an encrypted file
        archive.write_bytes(content)
        with pytest.raises(DataError, match=r"is protected by a password \(train/dog/5\.png is encrypted\). Unpack"):
            read(archive)

    @pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x1f\x8b tar.gz", b"PK\x05\x06" + bytes(18) + b"?"])
    def test_another_file_is_refused(self, tmp_path, content):
        (tmp_path / "a.zip").write_bytes(content)
        with pytest.raises(MissingDataError if content.endswith(b"?") else DataError, match=r"a\.zip"):
            read(tmp_path / "a.zip")

    def test_an_archive_that_was_cut_is_refused(self, archive):
        archive.write_bytes(archive.read_bytes()[:-30])
        with pytest.raises(DataError, match=r"is not a readable zip archive of class folders: .*that is complete"):
            read(archive)

    def test_a_pipe_is_not_opened(self, tmp_path):
        os.mkfifo(tmp_path / "a.zip")
        with pytest.raises(DataError, match="not a regular file"):
            read(tmp_path / "a.zip")

    def test_a_damaged_image_is_named(self, archive):
        content = bytearray(archive.read_bytes())
        at = content.find(b"train/dog/3.png") + len("train/dog/3.png") + 20
        content[at] ^= 0xFF
        archive.write_bytes(content)
        with pytest.raises(DataError, match=r"image train/dog/3\.png in .*pictures\.zip cannot be read: .*Repair or"):
            read(archive)

    @settings(max_examples=150, deadline=None)
    @given(changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4), cut=st.booleans())
    def test_any_damage_gives_an_error_that_names_the_archive_or_sound_images(self, tmp_path_factory, changes, cut):
        place = tmp_path_factory.mktemp("damage")
        path = write_entries(place / "a.zip")
        content = bytearray(path.read_bytes())
        for at, value in changes:
            content[int(at * (len(content) - 1))] = value
        path.write_bytes(content[: int(changes[0][0] * len(content))] if cut else content)
        found, message = outcome(path)
        assert (not found.train.x.any()) if message is None else str(path) in message

    def test_a_file_that_is_no_image_is_named(self, tmp_path):
        with pytest.raises(DataError, match=r"image train/cat/1\.png in .*cannot identify image file"):
            read(write_entries(tmp_path / "a.zip", content=b"not an image"))

    def test_a_bomb_is_not_decompressed(self, tmp_path, monkeypatch):
        monkeypatch.setattr("dpmodel.data.class_folders.MOST_BYTES", 1000)
        with pytest.raises(DataError, match="it states 2,000 bytes, more than 1,000"):
            read(write_entries(tmp_path / "a.zip", content=bytes(2000)))

    def test_an_understated_size_is_refused(self, tmp_path):
        path = tmp_path / "a.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for part in ("train", "test"):
                archive.writestr(f"{part}/cat/1.png", bytes(5_000_000))
        content = bytearray(path.read_bytes())
        at = content.find(b"PK\x01\x02")
        content[at + 24 : at + 28] = (100).to_bytes(4, "little")
        path.write_bytes(content)
        tracemalloc.start()
        with pytest.raises(DataError, match=r"image train/cat/1\.png in .*cannot be read"):
            read(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1_000_000


class TestBadImages:
    def write(self, root, image, name="2.png"):
        image.save(root / "train" / "cat" / name)
        return root

    @pytest.mark.parametrize("mode", ["I;16", "I", "F"])
    def test_deep_images_are_refused_because_they_would_be_clipped(self, pictures, mode):
        pixels = np.full((5, 4), 4096, dtype={"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode])
        with pytest.raises(DataError, match=r"2\.tif cannot be used: .*more than 8 bits.*Convert it to 8 bits"):
            read(self.write(pictures, Image.fromarray(pixels), "2.tif"))

    def test_grey_and_colour_may_be_mixed(self, pictures):
        grey = Image.fromarray(np.arange(20, dtype=np.uint8).reshape(5, 4))
        data = read(self.write(pictures, grey))
        assert torch.equal(data.train.x[2], torch.arange(20, dtype=torch.uint8).reshape(5, 4).expand(3, 5, 4))

    def test_sizes_that_differ_are_named_for_archives_too(self, pictures, tmp_path):
        path = zipped(self.write(pictures, Image.new("RGB", (4, 9))), tmp_path / "b.zip")
        with pytest.raises(DataError, match=r"differ in size: train/cat/0\.png in .* is \(5, 4\) and train/cat/2\.png"):
            read(path)
        assert read(path, image_size=6).example_shape == (3, 6, 6)

    def test_too_many_pixels_are_refused_with_the_remedy(self, pictures, monkeypatch):
        monkeypatch.setattr("dpmodel.data.image_decoding.MOST_PIXELS", 19)
        with pytest.raises(DataError, match=r"states 4 x 5 pixels, more than 19\. Resize it to at most 19 pixels, or"):
            read(pictures)

    def test_images_that_do_not_fit_into_memory_are_refused(self, pictures, monkeypatch):
        monkeypatch.setattr(encoded_images, "free_memory", lambda device: 719)
        with pytest.raises(DataError, match=r"the 12 images need 720 bytes of memory, but only 719 are free\. Set"):
            read(pictures)

    def test_a_link_to_nothing_is_named(self, pictures):
        (pictures / "train" / "cat" / "7.png").symlink_to("nowhere")
        with pytest.raises(DataError, match=r"cat/7\.png cannot be read: No such file"):
            read(pictures)

    def test_progress_is_shown_on_a_terminal(self, pictures, monkeypatch, capsys):
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "120")
        read(pictures, cache=None)
        shown = capsys.readouterr().err
        assert "decoding train" in shown
        assert "12/12" in shown
