"""MNIST and Fashion-MNIST from their IDX files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpmodel.data import locations
from dpmodel.data.idx import read_idx
from dpmodel.data.splits import RawSplits
from monitors.errors import DataError

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
NUM_CLASSES = 10


def mnist(root: str | os.PathLike[str] | None = None, download: bool = True) -> RawSplits:
    """60,000 training and 10,000 test images of handwritten digits, 28 x 28.

    Args:
        root: Folder that contains the four IDX files, plain or ``.gz``, directly or in ``MNIST/raw`` or ``raw``. None:
            the copy in a source checkout, then the cache folder.
        download: Let torchvision download the files if they are missing.

    Raises:
        MissingDataError: Not found and not downloaded; the message names the files and the folder to put them in.
        DataError: A file is damaged.

    References:
        LeCun et al. 1998. Licence CC BY-SA 3.0.
    """
    return _idx_splits("MNIST", root, download)


def fashion_mnist(root: str | os.PathLike[str] | None = None, download: bool = True) -> RawSplits:
    """60,000 training and 10,000 test images of clothing, 28 x 28. See ``mnist`` for the arguments and errors.

    References:
        Xiao, Rasul and Vollgraf 2017, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
        Algorithms".
    """
    return _idx_splits("FashionMNIST", root, download)


def _idx_splits(name: str, root: str | os.PathLike[str] | None, download: bool) -> RawSplits:
    paths = _located(name, root, download)
    images, labels, test_images, test_labels = (paths[file] for file in FILES)
    return RawSplits(
        *_examples(images, labels),
        *_examples(test_images, test_labels),
        num_classes=NUM_CLASSES,
        source=str(images.parent),
    )


def _located(name: str, root: str | os.PathLike[str] | None, download: bool) -> dict[str, Path]:
    base = locations.cache_folder() if root is None else locations.full_path(root)
    folders = [base / name / "raw", base / "raw", base]
    if root is None:
        folders = [folder / name / "raw" for folder in locations.embedded_folders()] + folders[:1]
    found = locations.first_complete(folders, FILES)
    if found is None and download:
        locations.fetch(lambda folder: _torchvision(name, folder), base, name, FILES, base / name / "raw")
        found = locations.first_complete(folders, FILES)
    if found is None:
        places = ", ".join(str(folder) for folder in folders)
        raise locations.missing(name, FILES, folders[-1], f"looked in {places}")
    return found


def _torchvision(name: str, folder: Path) -> Any:
    from torchvision import datasets

    return getattr(datasets, name)(str(folder), download=True)


def _examples(images: Path, labels: Path) -> tuple[Tensor, Tensor]:
    x, y = torch.from_numpy(read_idx(images, dimensions=3)), torch.from_numpy(read_idx(labels, dimensions=1))
    if len(x) != len(y):
        raise DataError(
            f"{images} has {len(x)} images but {labels} has {len(y)} labels: the files do not belong together"
        )
    if x.dtype != torch.uint8:
        raise DataError(f"{images} must contain uint8 images, got {x.dtype}")
    return x.unsqueeze(1), y.long()
