"""Examples held in memory as two tensors, converted batch by batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mechanisms.engines.device_copy import device_copy
from monitors.errors import DataError

Constants = float | Sequence[float] | None

#: Types of inputs that are used as integers, such as tokens.
WHOLE = (torch.int64, torch.int32)


class InMemoryDataset(Dataset[tuple[Tensor, Tensor]]):
    """Inputs ``x`` and targets ``y`` in memory. Images stay bytes and become floats in [0, 1] when they are read.

    Args:
        x: (N, ...) inputs: uint8 images (N, channels, height, width), float32, or integers such as tokens (int64 or
            int32, stored as int64), which are passed to the network unchanged.
        y: (N,) integer labels, stored as int64; or (N, k) numbers to predict, float32.
        mean: Subtracted from the floats: one number, or one per channel. It must be a PUBLIC constant, because a mean
            of the private training data would be a release that no ledger row covers.
        std: Public, positive constant by which the floats are then divided. Integers take neither ``mean`` nor ``std``.

    Raises:
        DataError: Lengths, types or constants do not match.

    Example:
        >>> images = torch.full((3, 1, 2, 2), 255, dtype=torch.uint8)
        >>> data = InMemoryDataset(images, torch.tensor([0, 1, 0]), mean=0.5, std=0.5)
        >>> x, y = data.batch(torch.tensor([2, 0]))
        >>> x.shape, x.unique().tolist(), y.tolist()
        (torch.Size([2, 1, 2, 2]), [1.0], [0, 0])
    """

    def __init__(self, x: Tensor, y: Tensor, *, mean: Constants = None, std: Constants = None) -> None:
        _check_tensors(x, y)
        self.x = (x.to(torch.int64) if x.dtype in WHOLE else x).contiguous()
        self.y = (y if y.is_floating_point() else y.to(torch.int64)).contiguous()
        self._mean = _constant("mean", mean, x)
        self._std = _constant("std", std, x)
        if self._std is not None and not bool((self._std > 0).all()):
            raise DataError(f"std must be positive, got {self._std.flatten().tolist()}")

    @property
    def constants(self) -> tuple[list[float] | None, list[float] | None]:
        """The constants ``mean`` and ``std``; None for none."""
        mean, std = (None if each is None else each.flatten().tolist() for each in (self._mean, self._std))
        return mean, std

    def transform_batch(self, x: Tensor) -> Tensor:
        """Convert a batch of stored inputs for the network; the shape is kept.

        Bytes are divided by 255. Then ``mean`` is subtracted, and the result is divided by ``std``. Integers are not
        changed.
        """
        values = x.float().div_(255.0) if x.dtype == torch.uint8 else x
        if self._mean is not None:
            values = values - device_copy(self._mean, values.device)
        if self._std is not None:
            values = values / device_copy(self._std, values.device)
        return values

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and labels of ``rows`` (int64, may be empty), ready for the network."""
        rows = device_copy(rows, self.x.device)
        return self.transform_batch(self.x.index_select(0, rows)), self.y.index_select(0, rows)

    def to(self, device: torch.device | str) -> InMemoryDataset:
        """The same examples on ``device``; the data set itself if they are already there."""
        if self.x.device == torch.device(device):
            return self
        moved = InMemoryDataset.__new__(InMemoryDataset)
        moved.__dict__.update(self.__dict__)
        moved.x, moved.y = self.x.to(device), self.y.to(device)
        return moved

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self.transform_batch(self.x[row : row + 1] if row >= 0 else self.x[row:][:1])[0], self.y[row]

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        return f"InMemoryDataset({len(self)} examples of shape {tuple(self.x.shape[1:])}, {self.x.dtype})"


def _check_tensors(x: Tensor, y: Tensor) -> None:
    if x.dtype not in (torch.uint8, torch.float32, *WHOLE):
        raise DataError(
            f"x must be uint8 (images), float32, or int64 or int32 (integers such as tokens), got {x.dtype}; "
            "convert it first"
        )
    if x.dim() < 2:
        raise DataError(f"x must have one row per example, got shape {tuple(x.shape)}")
    labels = y.dim() == 1 and not y.is_floating_point() and not y.is_complex()
    if not labels and (y.dim() != 2 or y.dtype != torch.float32):
        several = y.dim() == 2 and not y.is_floating_point() and not y.is_complex()
        remedy = (
            "; for several labels per example (multi-label) convert to float32, with y.float(); for a target at each "
            "position, as of a language model, use a TensorDataset"
            if several
            else ""
        )
        raise DataError(
            f"y must be one integer per example, or float32 of shape (N, k), got {y.dtype} of shape "
            f"{tuple(y.shape)}{remedy}"
        )
    if len(x) != len(y):
        raise DataError(f"x and y differ in length: {len(x)} and {len(y)}")


def _constant(name: str, value: Constants, x: Tensor) -> Tensor | None:
    if value is None:
        return None
    if x.dtype in WHOLE:
        raise DataError(
            f"{name}={value!r} cannot be applied to inputs of {x.dtype}: integers such as tokens are passed to the "
            f"network unchanged. Omit {name}, or convert the inputs to float32"
        )
    numbers = torch.as_tensor(value, dtype=torch.float32).flatten()
    if not bool(numbers.isfinite().all()):
        raise DataError(f"{name} must be finite, got {value!r}")
    if len(numbers) not in (1, x.shape[1]):
        raise DataError(
            f"{name} must be one number or one for each of {x.shape[1]} channels, got {len(numbers)}: {value!r}"
        )
    return numbers.reshape(1, -1, *[1] * (x.dim() - 2))
