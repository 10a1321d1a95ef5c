"""What a first configuration needs to know about the data: size, shape and kind of targets."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpmodel.planning.training_plan import KNOWN_SIZES
from monitors.errors import ConfigError

if TYPE_CHECKING:
    from dpmodel.data import DataSplits

#: Height and width to which the images of a folder are resized.
FOLDER_IMAGE_SIZE = 32

#: Shape of an example and number of classes of the public data sets, so that they need not be read.
_PUBLIC: Mapping[str, tuple[tuple[int, ...], int]] = {
    "mnist": ((1, 28, 28), 10),
    "fashion_mnist": ((1, 28, 28), 10),
    "cifar10": ((3, 32, 32), 10),
}


@dataclass(frozen=True)
class DataFacts:
    """Facts about a data set.

    Args:
        name: Name of the reader.
        num_examples: Training examples.
        shape: Shape of one input, for images (channels, height, width).
        num_classes: Classes, or targets per example.
        targets: ``"classes"``, ``"labels"`` (several of 0 and 1 per example) or ``"numbers"``.
        tokens: Whether the inputs are integers.
        options: Arguments of the reader.
        classes_counted: Whether the classes were counted in the training labels.
    """

    name: str
    num_examples: int
    shape: tuple[int, ...]
    num_classes: int
    targets: str = "classes"
    tokens: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    classes_counted: bool = False

    @property
    def image_size(self) -> int | None:
        """Height and width of the images; None for other inputs."""
        square = len(self.shape) == 3 and self.shape[1] == self.shape[2]
        return self.shape[1] if square else None


def kind_of(root: str | os.PathLike[str] | None) -> str:
    """The name of the reader for the data at ``root``.

    Raises:
        ConfigError: ``root`` does not exist, or no reader can read it.

    Example:
        >>> kind_of(None)
        'mnist'
    """
    if root is None:
        return "mnist"
    path = Path(root)
    if not path.exists():
        raise ConfigError(
            f"{path} does not exist; give an .npz file, a folder or .zip of images, or the name of a data set"
        )
    if path.suffix == ".npz":
        return "npz"
    if path.suffix.lower() == ".zip" or (path / "train").is_dir():
        return "image_folder"
    raise ConfigError(f"{path} is {_description(path)}")


def _description(path: Path) -> str:
    """What is at ``path``, which no reader can read, and what to do."""
    if not path.is_dir():
        return (
            "neither an .npz nor a .zip file. Save inputs and targets as arrays once, such as "
            "numpy.savez('data.npz', x_train=..., y_train=..., x_test=..., y_test=...), "
            "and give that file; or name a reader with --data"
        )
    inside = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
    found = f"has the folders {', '.join(inside[:5])}" if inside else "has no folders"
    return (
        f"a folder without train/<class>/ and test/<class>/ (it {found}). Move the images of each class into them: the "
        "network is trained on train/ and measured on test/. For other data, name a reader with --data"
    )


def facts_of(name: str, root: str | os.PathLike[str] | None) -> DataFacts:
    """Read the data, unless the data set is public.

    Raises:
        ConfigError: Unknown name.
        ValueError: An argument is missing.
        DataError: The data are missing or damaged.
    """
    options: dict[str, Any] = {} if root is None else {"root": os.fspath(root)}
    if name in _PUBLIC:
        shape, classes = _PUBLIC[name]
        return DataFacts(name, KNOWN_SIZES[name], shape, classes, options=options)
    import torch

    from dpmodel.data import load_dataset
    from dpmodel.data.datasets import DATASETS

    try:
        DATASETS.get(name)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if name == "image_folder":
        return _facts_of_images({**options, "image_size": FOLDER_IMAGE_SIZE})
    data = load_dataset(name, **options)
    tokens = data.train.x.dtype in (torch.int64, torch.int32)
    facts = DataFacts(name, len(data.train), data.example_shape, data.num_classes, _targets(data), tokens, options)
    return replace(facts, classes_counted=data.classes_counted)


def _facts_of_images(options: dict[str, Any]) -> DataFacts:
    """Facts about images in folders, none of which is decoded."""
    from dpmodel.data.image_folder import image_folder
    from monitors.arguments import check_arguments

    check_arguments(image_folder, options, "data set 'image_folder'")
    raw = image_folder(**options)
    shape = (3, FOLDER_IMAGE_SIZE, FOLDER_IMAGE_SIZE)
    return DataFacts("image_folder", len(raw.x_train), shape, raw.num_classes, options=options)


def _targets(data: DataSplits) -> str:
    y = data.train.y
    if not y.is_floating_point():
        return "classes"
    return "labels" if bool(((y == 0) | (y == 1)).all()) else "numbers"
