"""Images on the disk, the folder of decoded ones, and a count of what is decoded."""

import pytest

from dpmodel.data.encoded_images import EncodedImages

from .image_files import save, zipped


@pytest.fixture
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


@pytest.fixture
def pictures(tmp_path):
    return save(tmp_path / "pictures")


@pytest.fixture
def archive(pictures, tmp_path):
    return zipped(pictures, tmp_path / "pictures.zip")
