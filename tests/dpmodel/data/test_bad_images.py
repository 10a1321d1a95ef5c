"""Archives and images that cannot be used are refused by name."""

import os
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dpmodel.data import encoded_images
from monitors.errors import DataError, MissingDataError

from .image_files import read, zipped

pytestmark = pytest.mark.usefixtures("cache")


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

    def test_an_empty_name_is_refused(self, tmp_path):
        path = write_entries(tmp_path / "a.zip", names=["?.png"])
        path.write_bytes(path.read_bytes().replace(b"?.png", b"\0.png"))  # zipfile ends a name at a NUL
        with pytest.raises(DataError, match=r"holds '', which is not a path within an archive"):
            read(path)

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
