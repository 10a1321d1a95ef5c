"""CIFAR-10 through torchvision."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpmodel.data import locations
from dpmodel.data.splits import RawSplits

ARCHIVE = "cifar-10-python.tar.gz"
NUM_CLASSES = 10


def cifar10(root: str | os.PathLike[str] | None = None, download: bool = True) -> RawSplits:
    """50,000 training and 10,000 test images in ten classes, 3 x 32 x 32.

    torchvision verifies the checksums of the files before it reads them.

    Args:
        root: Folder that contains ``cifar-10-python.tar.gz`` or ``cifar-10-batches-py``. None: the cache folder.
        download: Let torchvision download the files if they are missing.

    Raises:
        MissingDataError: Not found and not downloaded; the message names the file and the folder to put it in.

    References:
        Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images".
    """
    folder = locations.cache_folder() if root is None else locations.full_path(root)
    here = (folder / ARCHIVE).is_file() or (folder / "cifar-10-batches-py").is_dir()
    if not here and not download:
        raise locations.missing("CIFAR-10", [ARCHIVE], folder, f"looked in {folder}")
    # If the archive is there, torchvision only unpacks it.
    locations.fetch(lambda into: _torchvision(into, train=True), folder, "CIFAR-10", [ARCHIVE], folder)
    train, test = _torchvision(folder, train=True), _torchvision(folder, train=False)
    return RawSplits(*_examples(train), *_examples(test), num_classes=NUM_CLASSES, source=str(folder))


def _torchvision(folder: Path, train: bool) -> Any:
    from torchvision.datasets import CIFAR10

    return CIFAR10(str(folder), train=train, download=True)


def _examples(dataset: Any) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(dataset.targets)
