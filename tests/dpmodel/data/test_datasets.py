import gzip
import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

from dpmodel.data import DATASETS, RawSplits, load_dataset, locations
from dpmodel.data.mnist import FILES
from monitors.errors import DataError, MissingDataError

MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """No cache, no download and no copy in the current folder, only the files of a test."""

    def refuse(name, folder):
        raise OSError("no network")

    monkeypatch.setenv("DPMODEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("dpmodel.data.mnist._torchvision", refuse)
    monkeypatch.setattr("dpmodel.data.cifar10._torchvision", lambda folder, train: refuse("", folder))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_idx(folder, counts=(6, 4)):
    folder.mkdir(parents=True, exist_ok=True)
    for files, count in ((FILES[:2], counts[0]), (FILES[2:], counts[1])):
        images = np.arange(count * 784).reshape(count, 28, 28).astype(np.uint8)
        header = b"\0\0\x08\x03" + np.array([count, 28, 28], dtype=">u4").tobytes()
        (folder / files[0]).write_bytes(header + images.tobytes())
        labels = (np.arange(count) % 10).astype(np.uint8)
        content = b"\0\0\x08\x01" + np.array([count], dtype=">u4").tobytes() + labels.tobytes()
        (folder / f"{files[1]}.gz").write_bytes(gzip.compress(content))


def test_the_embedded_mnist_is_the_original_byte_for_byte():
    folder = locations.embedded_folders()[0] / "MNIST" / "raw"
    for name, digest in MD5.items():
        assert hashlib.md5(gzip.decompress((folder / f"{name}.gz").read_bytes())).hexdigest() == digest


def test_mnist_is_found_without_a_download_and_resized_as_in_the_tutorial(no_network):
    data = load_dataset("mnist", image_size=32, limit=100, test_limit=50)
    assert (len(data.train), len(data.test), data.num_classes) == (100, 50, 10)
    assert data.example_shape == (1, 32, 32)
    assert data.train.x.dtype == torch.uint8
    assert data.network_defaults() == {"num_classes": 10, "in_channels": 1, "in_features": 1024, "image_size": 32}
    x, _ = data.train.batch(torch.arange(3))
    assert 0 <= float(x.min()) < float(x.max()) <= 1


def test_all_of_mnist_has_its_known_mean():
    data = load_dataset("mnist")
    assert (len(data.train), len(data.test)) == (60_000, 10_000)
    assert float(data.train.x.double().mean()) / 255 == pytest.approx(0.1307, abs=1e-4)
    assert torch.bincount(data.train.y).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


def test_the_limit_keeps_the_same_rows_each_time_and_all_classes():
    first, second = load_dataset("mnist", limit=200), load_dataset("mnist", limit=200)
    assert torch.equal(first.train.x, second.train.x)
    assert len(first.train.y.unique()) == 10
    small = load_dataset("synthetic", num_train=50, limit=50)
    assert torch.equal(small.train.x, load_dataset("synthetic", num_train=50).train.x)


@pytest.mark.parametrize("below", ["", "raw", "FashionMNIST/raw"])
def test_a_root_may_be_any_of_the_usual_folders(no_network, below):
    write_idx(no_network / "data" / below)
    data = load_dataset("fashion_mnist", root=no_network / "data")
    assert (len(data.train), len(data.test)) == (6, 4)


def test_missing_files_are_named_with_the_place_to_put_them(no_network):
    with pytest.raises(MissingDataError, match=r"train-images-idx3-ubyte.*FashionMNIST/raw") as caught:
        load_dataset("fashion_mnist")
    assert "no network" in str(caught.value)
    assert "data.root" in str(caught.value)
    with pytest.raises(MissingDataError, match=r"cifar-10-python\.tar\.gz"):
        load_dataset("cifar10")


def test_without_download_nothing_is_fetched(no_network):
    for name in ("fashion_mnist", "cifar10"):
        with pytest.raises(MissingDataError, match="looked in"):
            load_dataset(name, root=no_network / "empty", download=False)
    assert not (no_network / "empty").exists()


def test_a_download_goes_to_the_cache_and_is_read_from_there(no_network, monkeypatch):
    monkeypatch.setattr("dpmodel.data.mnist._torchvision", lambda name, folder: write_idx(folder / name / "raw"))
    assert len(load_dataset("fashion_mnist").train) == 6
    assert (no_network / "cache" / "FashionMNIST" / "raw" / FILES[0]).is_file()


def test_a_damaged_file_is_named(no_network):
    write_idx(no_network / "data")
    path = no_network / "data" / FILES[0]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="train-images-idx3-ubyte"):
        load_dataset("mnist", root=no_network / "data")


def test_images_and_labels_that_do_not_belong_together_are_refused(no_network):
    write_idx(no_network / "data", counts=(6, 4))
    write_idx(no_network / "other", counts=(5, 4))
    (no_network / "other" / f"{FILES[1]}.gz").replace(no_network / "data" / f"{FILES[1]}.gz")
    with pytest.raises(DataError, match=r"has 6 images but .* has 5 labels"):
        load_dataset("mnist", root=no_network / "data")


class TestNpz:
    def save(self, path, **changes):
        arrays = {
            "x_train": np.zeros((6, 8, 8), np.uint8),
            "y_train": np.arange(6) % 3,
            "x_test": np.zeros((3, 8, 8), np.uint8),
            "y_test": np.arange(3),
        }
        np.savez(path, **{key: value for key, value in {**arrays, **changes}.items() if value is not None})
        return path

    def test_grey_images_get_a_channel_and_the_classes_are_counted(self, tmp_path):
        data = load_dataset("npz", root=self.save(tmp_path / "own.npz"), image_size=16)
        assert data.example_shape == (1, 16, 16)
        assert data.num_classes == 3

    def test_features_are_read_as_float32(self, tmp_path):
        features = {"x_train": np.ones((6, 5)), "x_test": np.ones((3, 5))}
        data = load_dataset("npz", root=self.save(tmp_path / "own.npz", **features))
        assert data.train.x.dtype == torch.float32
        assert data.network_defaults() == {"num_classes": 3, "in_features": 5, "in_channels": 5}

    @pytest.mark.parametrize("columns", [(), (1,), (3,)])
    def test_floats_are_numbers_to_predict(self, tmp_path, columns):
        numbers = {"x_train": np.ones((6, 5)), "x_test": np.ones((3, 5))}
        numbers |= {"y_train": np.ones((6, *columns)), "y_test": np.ones((3, *columns))}
        data = load_dataset("npz", root=self.save(tmp_path / "own.npz", **numbers))
        assert data.num_classes == (columns or (1,))[0]
        assert (data.train.y.dtype, data.train.y.shape) == (torch.float32, (6, data.num_classes))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"x_test": None, "x_tset": np.zeros(3)}, "has no array x_test; did you mean 'x_tset'"),
            ({"y_test": None}, "has no array y_test. It has: x_train, y_train, x_test"),
            ({"y_train": np.array([0, 1, 2, -1, 0, 1])}, r"label -1 in row 3 is not in \[0, 3\)"),
            ({"y_train": np.zeros(5, int)}, "6 inputs but 5 labels"),
            ({"y_train": np.zeros((6, 2), int)}, r"got int64 .*\(multi-label\) convert to float32"),
            ({"y_train": np.array(["a"] * 6)}, "targets must be one integer per example .* got <U1"),
            (
                {"y_train": np.zeros(6)},
                r"targets are torch\.float32 in train and torch\.int64",
            ),
            ({"y_train": np.full((6, 2), np.inf), "y_test": np.zeros((3, 2))}, "targets must be 2 finite numbers each"),
            ({"y_train": np.zeros((6, 2)), "y_test": np.zeros((3, 1))}, "targets must be 2 finite numbers each"),
            ({"x_train": np.zeros((6, 8), np.int16)}, r"must be uint8 .* got int16; .* astype\('int64'\)"),
            ({"x_train": np.zeros((6, 8), bool)}, "must be uint8 .* got bool"),
            ({"x_train": np.zeros((6, 8), np.int64)}, "shape and type must be the same"),
            ({"y_train": np.zeros((6, 1), int)}, r"for classes give them as shape \(N,\), with y\[:, 0\]"),
            (
                {"y_test": np.array([0, 9, 1])},
                r"npz test: label 9 in row 1 is not in \[0, 3\).*that of the training",
            ),
            ({"x_train": np.array([None] * 6)}, "is not a readable .npz archive"),
            ({"x_train": np.full((6, 4), np.nan)}, "the input in row 0 has NaN"),
            ({"x_test": np.zeros((3, 9, 9), np.uint8)}, "shape and type must be the same"),
            ({"x_train": np.zeros((0, 8, 8), np.uint8), "y_train": np.zeros(0, int)}, "there are no examples"),
        ],
    )
    def test_wrong_arrays_are_refused(self, tmp_path, changes, message):
        with pytest.raises(DataError, match=message):
            load_dataset("npz", root=self.save(tmp_path / "own.npz", **changes))

    def test_labels_beyond_the_given_number_of_classes_are_refused(self, tmp_path):
        with pytest.raises(DataError, match=r"label 2 in row 2 is not in \[0, 2\); 2 labels"):
            load_dataset("npz", root=self.save(tmp_path / "own.npz"), num_classes=2)

    @pytest.mark.parametrize("dtype", [np.int64, np.int32, ">i4"])
    def test_integers_are_read_as_int64(self, tmp_path, dtype):
        tokens = {"x_train": np.arange(30).reshape(6, 5).astype(dtype), "x_test": np.full((3, 5), 7, dtype)}
        data = load_dataset("npz", root=self.save(tmp_path / "own.npz", **tokens))
        assert data.train.x.dtype == torch.int64
        assert data.train.x.flatten().tolist() == list(range(30))

    def test_constants_for_integers_are_refused(self, tmp_path):
        tokens = {"x_train": np.zeros((6, 5), int), "x_test": np.zeros((3, 5), int)}
        with pytest.raises(DataError, match=r"mean=0\.5 cannot be applied to inputs of torch\.int64"):
            load_dataset("npz", root=self.save(tmp_path / "own.npz", **tokens), mean=0.5)

    def test_test_labels_beyond_the_training_classes_need_num_classes(self, tmp_path):
        path = self.save(tmp_path / "own.npz", y_test=np.array([0, 3, 1]))
        assert load_dataset("npz", root=path, num_classes=4).num_classes == 4

    @pytest.mark.parametrize("content", [b"", b"\x80\x04N.", b"a,b\n1,2\n", b"\x93NUMPY"])
    def test_a_file_that_is_not_an_archive_is_refused_with_the_remedy_and_never_unpickled(self, tmp_path, content):
        (tmp_path / "own.csv").write_bytes(content)
        with pytest.raises(DataError, match=r"own\.csv is not an \.npz archive.*numpy\.savez.*x_train=") as caught:
            load_dataset("npz", root=tmp_path / "own.csv")
        assert "pickle" not in str(caught.value)

    def test_a_broken_archive_is_refused(self, tmp_path):
        (tmp_path / "own.npz").write_bytes(b"PK\x03\x04 broken")
        with pytest.raises(DataError, match=r"own\.npz is not a readable"):
            load_dataset("npz", root=tmp_path / "own.npz")

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(MissingDataError, match=r"must be an .npz file with the arrays x_train"):
            load_dataset("npz", root=tmp_path / "own.npz")


@pytest.mark.parametrize("name", ["npz", "image_folder", "mnist", "cifar10"])
def test_missing_data_are_reported_with_the_full_path(no_network, name):
    options = {"download": False} if name in ("mnist", "cifar10") else {}
    with pytest.raises(MissingDataError) as caught:
        load_dataset(name, root="below/nowhere", **options)
    assert str(no_network / "below" / "nowhere") in str(caught.value)


def test_data_are_described_with_size_and_task(monkeypatch):
    assert load_dataset("synthetic", num_train=1024, num_classes=2).describe() == "1,024 training examples, 2 classes"
    monkeypatch.setattr(DATASETS, "_builders", dict(DATASETS._builders))
    x, y = torch.zeros(2, 3), torch.zeros(2, 1)
    DATASETS.register("numbers")(lambda: RawSplits(x, y, x, y, num_classes=1, source="made up"))
    assert load_dataset("numbers").describe() == "2 training examples, 1 number to predict"


class TestImageFolder:
    def save(self, root, size=(8, 8), classes=("cat", "dog")):
        for part in ("train", "test"):
            for number, name in enumerate(classes):
                folder = root / part / name
                folder.mkdir(parents=True)
                for index in range(2):
                    Image.new("RGB", size, (100 * number, 10 * index, 0)).save(folder / f"{index}.png")
        return root

    def test_classes_are_numbered_by_name_and_images_become_tensors(self, tmp_path):
        data = load_dataset("image_folder", root=self.save(tmp_path))
        assert data.num_classes == 2
        assert data.train.y.tolist() == [0, 0, 1, 1]
        assert data.train.x.shape == (4, 3, 8, 8)
        assert data.train.x[2, :, 0, 0].tolist() == [100, 0, 0]

    def test_options_convert_to_grey_and_resize(self, tmp_path):
        data = load_dataset("image_folder", root=self.save(tmp_path), channels=1, image_size=4)
        assert data.example_shape == (1, 4, 4)

    def test_images_of_different_sizes_need_image_size(self, tmp_path):
        root = self.save(tmp_path)
        Image.new("RGB", (9, 8)).save(root / "train" / "dog" / "9.png")
        with pytest.raises(DataError, match=r"images differ in size.*set data.image_size"):
            load_dataset("image_folder", root=root)
        assert load_dataset("image_folder", root=root, image_size=8).example_shape == (3, 8, 8)

    def test_a_damaged_image_is_named(self, tmp_path):
        root = self.save(tmp_path)
        path = root / "train" / "cat" / "1.png"
        path.write_bytes(path.read_bytes()[:40])
        with pytest.raises(DataError, match=r"cat/1\.png cannot be read"):
            load_dataset("image_folder", root=root)

    def test_wrong_layouts_are_refused_with_the_right_one(self, tmp_path):
        with pytest.raises(MissingDataError, match="an image folder must contain train/<class>"):
            load_dataset("image_folder", root=tmp_path)
        root = self.save(tmp_path / "data")
        (root / "test" / "horse").mkdir()
        with pytest.raises(DataError, match="class 'horse', which has no training folder"):
            load_dataset("image_folder", root=root)


def test_synthetic_data_are_the_same_for_one_seed_and_differ_between_seeds():
    first, second, other = (load_dataset("synthetic", seed=seed, num_train=32) for seed in (1, 1, 2))
    assert torch.equal(first.train.x, second.train.x)
    assert not torch.equal(first.train.x, other.train.x)


def test_synthetic_classes_can_be_learned():
    data = load_dataset("synthetic", num_train=500, num_test=200, num_classes=4)
    x, y = data.train.batch(torch.arange(500))
    centres = torch.stack([x[y == label].mean(0) for label in range(4)])
    test_x, test_y = data.test.batch(torch.arange(200))
    nearest = (test_x[:, None] - centres).flatten(2).norm(dim=2).argmin(1)
    assert (nearest == test_y).float().mean() > 0.95


def rows_of(part):
    return sorted(zip((row.flatten().tolist() for row in part.x), part.y.tolist(), strict=True))


def test_validation_holds_training_examples_back_and_leaves_the_test_examples_unused():
    options = {"num_train": 60, "num_test": 30, "num_classes": 3, "image_size": 28}
    whole, part = load_dataset("synthetic", **options), load_dataset("synthetic", validation=20, **options)
    assert (len(part.train), len(part.test)) == (40, 20)
    assert sorted(rows_of(part.train) + rows_of(part.test)) == rows_of(whole.train)
    again = load_dataset("synthetic", validation=20, **options)
    assert torch.equal(part.test.x, again.test.x)
    fewer = load_dataset("synthetic", validation=20, limit=10, test_limit=5, **options)
    assert (len(fewer.train), len(fewer.test)) == (10, 5)
    assert all(row in rows_of(part.train) for row in rows_of(fewer.train))
    assert all(row in rows_of(part.test) for row in rows_of(fewer.test))
    assert rows_of(fewer.train) == rows_of(load_dataset("synthetic", limit=10, **options).train)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "minst"}, "did you mean 'mnist'"),
        ({"name": "synthetic", "num_trian": 3}, "did you mean 'num_train'"),
        ({"name": "npz"}, "data set 'npz' needs the argument 'root'"),
        ({"name": "synthetic", "limit": 0}, "limit must be an integer of at least 1"),
        ({"name": "synthetic", "num_train": 10, "limit": 11}, "limit is 11, but there are only 10 examples"),
        ({"name": "synthetic", "num_test": 10, "test_limit": 11}, "test_limit is 11"),
        ({"name": "synthetic", "validation": 0}, "validation must be an integer of at least 1"),
        (
            {"name": "synthetic", "num_train": 10, "validation": 10},
            "at least 1 must be left to train on; use at most 9",
        ),
        ({"name": "synthetic", "num_train": 10, "limit": 8, "validation": 3}, "use at most 2, or lower limit"),
        ({"name": "synthetic", "std": [1.0, 2.0]}, "one for each of 1 channels"),
        ({"name": "synthetic", "image_size": -3}, "image_size must be an integer"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(**options)


def test_a_custom_reader_is_used_by_name(monkeypatch):
    monkeypatch.setattr(DATASETS, "_builders", dict(DATASETS._builders))

    @DATASETS.register("two_points")
    def two_points(gap=1.0):
        x, y = torch.tensor([[0.0], [gap]]), torch.tensor([0, 1])
        return RawSplits(x, y, x, y, num_classes=2, source="made up")

    assert load_dataset("two_points", gap=3.0).train.x.tolist() == [[0.0], [3.0]]
