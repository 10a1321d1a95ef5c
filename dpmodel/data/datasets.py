"""Data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dpmodel.data.cifar10 import cifar10
from dpmodel.data.image_folder import image_folder
from dpmodel.data.in_memory import Constants
from dpmodel.data.mnist import fashion_mnist, mnist
from dpmodel.data.npz import npz
from dpmodel.data.splits import DataSplits, RawSplits, finish_splits
from dpmodel.data.synthetic import synthetic
from monitors.arguments import accepted_names, check_arguments
from monitors.registry import Registry

DATASETS: Registry[Callable[..., RawSplits]] = Registry("data set")
DATASETS.register("mnist")(mnist)
DATASETS.register("fashion_mnist")(fashion_mnist)
DATASETS.register("cifar10")(cifar10)
DATASETS.register("image_folder")(image_folder)
DATASETS.register("npz")(npz)
DATASETS.register("synthetic")(synthetic)


def load_dataset(
    name: str = "mnist",
    *,
    image_size: int | None = None,
    mean: Constants = None,
    std: Constants = None,
    limit: int | None = None,
    test_limit: int | None = None,
    validation: int | None = None,
    **options: Any,
) -> DataSplits:
    """Read a data set into memory.

    Args:
        name: ``"mnist"``, ``"fashion_mnist"``, ``"cifar10"``, ``"image_folder"``, ``"npz"``, ``"synthetic"``, or any
            other registered reader (a function that returns ``RawSplits``).
        image_size: Height and width to which images are resized once; None keeps their size (LeNet5 takes 32).
        mean: PUBLIC constant that is subtracted from the floats in [0, 1]: one number, or one per channel.
        std: PUBLIC constant by which they are then divided.
        limit: Keep only this many training examples, the first ones of a fixed public permutation. The privacy
            guarantee then covers the examples that are kept.
        test_limit: The same for the test examples.
        validation: Hold this many training examples back, chosen by the same permutation, and return them as the test
            examples, in place of those of the data set. For choosing settings. The guarantee covers the remaining
            examples; metrics on those held back are releases about them.
        **options: Arguments of the reader, such as ``root``.

    Raises:
        ValueError: Unknown name or option; the nearest is suggested.
        MissingDataError: Files are missing; the message says which, and where to put them.
        DataError: Files are damaged, or labels are out of range.

    Example:
        >>> data = load_dataset("synthetic", image_size=28, limit=100)
        >>> len(data.train), data.example_shape
        (100, (1, 28, 28))
    """
    reader = DATASETS.get(name)
    if image_size is not None and "image_size" in (accepted_names(reader) or ()):
        options = {**options, "image_size": image_size}
    check_arguments(reader, options, f"data set {name!r}")
    raw = reader(**options)
    return finish_splits(
        name,
        raw,
        image_size=image_size,
        mean=mean,
        std=std,
        limit=limit,
        test_limit=test_limit,
        validation=validation,
    )
