"""The inputs of a trained network: what queries must look like, and how files of them are read."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpmodel.data import locations
from dpmodel.data.datasets import DATASETS
from dpmodel.data.image_decoding import ENDINGS, MODES, read_image
from dpmodel.data.images import resize_images
from dpmodel.data.in_memory import InMemoryDataset
from dpmodel.data.npz import read_array, stored_inputs
from dpmodel.data.splits import DataSplits
from monitors import checks
from monitors.arguments import accepted_names
from monitors.errors import DataError, MissingDataError
from monitors.untrusted import open_untrusted

#: Types of stored inputs, by name.
TYPES = {"uint8": torch.uint8, "float32": torch.float32, "int64": torch.int64}

_LARGEST_BYTE = 255


@dataclass(frozen=True)
class InputForm:
    """Shape and type of one input as a data set stores it, before constants and features are applied; public.

    Args:
        shape: Shape of one input; (channels, height, width) for images.
        dtype: ``"uint8"`` (images), ``"float32"``, or ``"int64"`` (integers such as tokens).
        num_classes: Number of classes.

    Raises:
        ValueError: One of them is not such a value.

    Example:
        >>> form = InputForm((1, 2, 2), "uint8", 10)
        >>> form.rows([[[[0, 255], [3, 4]]]], image_size=None).shape
        torch.Size([1, 1, 2, 2])
        >>> form.rows([[1, 2]], image_size=None)
        Traceback (most recent call last):
            ...
        monitors.errors.DataError: each row must be uint8 of shape (1, 2, 2), got shape (2,)
    """

    shape: tuple[int, ...]
    dtype: str
    num_classes: int

    def __post_init__(self) -> None:
        for size in (*self.shape, self.num_classes):
            checks.positive_int(size=size)
        if not self.shape:
            raise ValueError("shape must have at least one number")
        checks.one_of(TYPES, dtype=self.dtype)

    @classmethod
    def of(cls, data: DataSplits) -> InputForm:
        """The form of the inputs of ``data``."""
        return cls(data.example_shape, str(data.train.x.dtype).removeprefix("torch."), data.num_classes)

    @classmethod
    def from_dict(cls, values: Any) -> InputForm:
        """The form from the output of ``to_dict``.

        Raises:
            ValueError: ``values`` is not the output of ``to_dict``.
        """
        if not isinstance(values, Mapping) or not isinstance(values.get("shape"), list):
            raise ValueError(f"the form of inputs must have a list 'shape', got {checks.shown(values)}")
        dtype: Any = values.get("dtype")
        num_classes: Any = values.get("num_classes")
        return cls(tuple(values["shape"]), dtype, num_classes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"shape": list(self.shape), "dtype": self.dtype, "num_classes": self.num_classes}

    def blank(self, options: Mapping[str, Any]) -> DataSplits:
        """A data set of one example of zeros, with the constants of ``options``, to build a network from."""
        constants = {name: options.get(name) for name in ("mean", "std")}
        x, y = torch.zeros((1, *self.shape), dtype=TYPES[self.dtype]), torch.zeros(1, dtype=torch.int64)
        example = InMemoryDataset(x, y, **constants)
        return DataSplits("queries", example, example, self.num_classes)

    def rows(self, values: Sequence[Any] | NDArray[Any], *, image_size: int | None) -> Tensor:
        """Numbers as stored inputs, shape (B, *shape).

        Args:
            values: One entry per row: numbers in nested lists, or an array.
            image_size: Height and width to which images of other sizes are resized; None: they must fit.

        Raises:
            DataError: Shape, type or range are wrong; says what is expected.
        """
        try:
            array = np.asarray(values)
        except (ValueError, OverflowError) as error:
            raise DataError(f"{self._expected()}, but the rows differ in shape") from error
        stored = self._stored(array)
        if image_size is not None and self.dtype == "uint8" and stored.dim() == 4:
            stored = resize_images(stored, image_size)
        if tuple(stored.shape[1:]) != self.shape:
            raise DataError(f"{self._expected()}, got shape {tuple(array.shape[1:])}")
        return stored

    def read(self, path: str | os.PathLike[str], options: Mapping[str, Any]) -> tuple[Tensor, list[str]]:
        """Inputs in a file: ``.npz``, ``.npy``, an image, or a folder of images.

        Args:
            path: File or folder.
            options: Settings of the data: ``name``, and ``image_size`` if any.

        Returns:
            Stored inputs (B, *shape), and the names of their files, if they are images.

        Raises:
            MissingDataError: There is no such file, or no image in the folder.
            DataError: It cannot be read, or the inputs are not those of the network.
        """
        place, size = locations.full_path(path), options.get("image_size")
        if not place.is_dir() and place.suffix.lower() not in ENDINGS:
            return self.rows(read_array(place), image_size=size), []
        files = (
            sorted(file for file in place.iterdir() if file.suffix.lower() in ENDINGS) if place.is_dir() else [place]
        )
        if not files:
            raise MissingDataError(f"{place} holds no images ({', '.join(sorted(ENDINGS))})")
        images = torch.cat([self._image(file, options) for file in files])
        return images, [file.name for file in files]

    def _image(self, file: Path, options: Mapping[str, Any]) -> Tensor:
        if self.dtype != "uint8" or len(self.shape) != 3 or self.shape[0] not in MODES:
            raise DataError(f"{file} is an image, but the network was trained on {self.dtype} of shape {self.shape}")
        size = options.get("image_size")
        # A reader that resizes by itself does so while it decodes; other images are resized in memory.
        reader = DATASETS.get(str(options.get("name")))
        decoding_size = size if "image_size" in (accepted_names(reader) or ()) else None
        pixels = read_image(lambda: open_untrusted(file), str(file), self.shape[0], decoding_size)
        try:
            return self.rows(pixels[None].copy(), image_size=size)
        except DataError as error:
            raise DataError(f"{file}: {error}") from error

    def _stored(self, array: NDArray[Any]) -> Tensor:
        if array.dtype.kind not in "uif" or array.ndim < 1:
            raise DataError(f"{self._expected()}, got values that are not numbers")
        if self.dtype == "uint8" and array.dtype != np.uint8:
            if array.dtype.kind == "f" or (array.size and not 0 <= array.min() <= array.max() <= _LARGEST_BYTE):
                raise DataError(f"{self._expected()}: whole numbers from 0 to {_LARGEST_BYTE}")
            array = array.astype(np.uint8)
        elif self.dtype == "float32":
            with np.errstate(over="ignore"):
                array = array.astype(np.float32)
            if not np.isfinite(array).all():
                raise DataError("the rows hold NaN or infinite values")
        elif self.dtype == "int64":
            if array.dtype.kind == "f":
                raise DataError(f"{self._expected()}: whole numbers")
            array = array.astype(np.int64)
        if self.dtype == "uint8" and array.ndim not in (3, 4):
            return torch.from_numpy(np.ascontiguousarray(array))
        return stored_inputs(array, "the rows") if array.ndim > 1 else torch.from_numpy(array)

    def _expected(self) -> str:
        return f"each row must be {self.dtype} of shape {self.shape}"
