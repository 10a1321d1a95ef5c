"""Images in class folders and in zip archives of them have the same content, and chosen rows are read alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dpmodel.data import encoded_images
from monitors.errors import DataError

from .image_files import FORMATS, files, read, same, zipped

pytestmark = pytest.mark.usefixtures("cache")

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
