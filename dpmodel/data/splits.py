"""A data set with its training and test part, as returned by every reader."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from dpmodel.data.fingerprint import Fingerprint
from dpmodel.data.images import resize_images
from dpmodel.data.in_memory import Constants, InMemoryDataset
from monitors import checks
from monitors.errors import DataError

PERMUTATION_SEED = 0


class LazyRows(Protocol):
    """Inputs that are read after the rows to keep were chosen."""

    def __len__(self) -> int:
        """Number of rows."""

    def index_select(self, dim: int, index: Tensor, /) -> LazyRows:
        """Some of the rows, still unread; ``dim`` is 0."""

    def load(self) -> Tensor:
        """Read the rows."""


@dataclass(frozen=True)
class RawSplits:
    """The data that a reader returns, as stored in the files.

    Args:
        x_train: (N, ...) uint8 images (N, channels, height, width), float32, or integers such as tokens (int64 or
            int32). Or an object with ``__len__``, ``index_select(0, rows)`` and ``load()``, which gives such a tensor:
            ``load`` is called after ``limit``, ``test_limit`` and ``validation`` have chosen the rows.
        y_train: (N,) integers in [0, num_classes), or (N, num_classes) floats for regression and multi-label
            classification.
        x_test: Like ``x_train``.
        y_test: Like ``y_train``.
        num_classes: Number of classes, or of numbers to predict per example; public.
        source: Where the data came from.
        classes_counted: Whether ``num_classes`` was counted in the training labels, because no argument stated it.
    """

    x_train: Tensor | LazyRows
    y_train: Tensor
    x_test: Tensor | LazyRows
    y_test: Tensor
    num_classes: int
    source: str
    classes_counted: bool = False


@dataclass(frozen=True)
class DataSplits:
    """Training and test data in memory.

    Args:
        name: Name of the data set.
        train: The private training examples.
        test: The test examples.
        num_classes: Number of classes, or of numbers to predict per example; public.
        source: Where the data came from.
        read_test: The fingerprint of the test data as read, if these are features of them. Features differ in their
            last digits between devices.
        classes_counted: Whether ``num_classes`` was counted in the training labels.
        held_back: Whether the test examples are training examples that ``validation`` held back, and thus private.
    """

    name: str
    train: InMemoryDataset
    test: InMemoryDataset
    num_classes: int
    source: str = ""
    read_test: Fingerprint | None = None
    classes_counted: bool = False
    held_back: bool = False

    @property
    def example_shape(self) -> tuple[int, ...]:
        """Shape of one input; (channels, height, width) for images."""
        return tuple(self.train.x.shape[1:])

    @property
    def test_fingerprint(self) -> Fingerprint:
        """The fingerprint of the test data as they were read, before any features are computed."""
        if self.held_back:
            return Fingerprint(len(self.test), None)
        return Fingerprint.of(self.test) if self.read_test is None else self.read_test

    def describe(self) -> str:
        """Size and task of the data set: ``"300 training examples, 2 classes"``."""
        what, many = ("number", "numbers") if self.train.y.is_floating_point() else ("class", "classes")
        kind = f"{self.num_classes} {what if self.num_classes == 1 else many}"
        return f"{len(self.train):,} training examples, {kind}{' to predict' if what == 'number' else ''}"

    def network_defaults(self) -> dict[str, Any]:
        """Network arguments that follow from the data, for ``build_network(..., defaults=...)``."""
        shape = self.example_shape
        implied = {"num_classes": self.num_classes, "in_features": math.prod(shape), "in_channels": shape[0]}
        return {**implied, "image_size": shape[-1]} if len(shape) == 3 else implied


def finish_splits(
    name: str,
    raw: RawSplits,
    *,
    image_size: int | None = None,
    mean: Constants = None,
    std: Constants = None,
    limit: int | None = None,
    test_limit: int | None = None,
    validation: int | None = None,
) -> DataSplits:
    """Check, split, limit and resize the data of a reader. See ``load_dataset`` for the arguments."""
    if validation is not None:
        raw, limit = _held_out(name, raw, validation, limit), None
    if raw.y_train.is_floating_point() != raw.y_test.is_floating_point():
        raise DataError(
            f"{name}: targets are {raw.y_train.dtype} in train and {raw.y_test.dtype} in test; convert them to one type"
        )
    parts = []
    for part, x, y, most in (("train", raw.x_train, raw.y_train, limit), ("test", raw.x_test, raw.y_test, test_limit)):
        _check_examples(f"{name} {part}", x, y, raw.num_classes)
        rows = _public_rows(len(x), most, "limit" if part == "train" else "test_limit")
        if rows is not None:
            x, y = x.index_select(0, rows), y.index_select(0, rows)
        if not isinstance(x, Tensor):
            x = x.load()
            _check_inputs(f"{name} {part}", x)
        if image_size is not None:
            x = resize_images(x, image_size)
        parts.append(InMemoryDataset(x, y, mean=mean, std=std))
    if parts[0].x.shape[1:] != parts[1].x.shape[1:] or parts[0].x.dtype != parts[1].x.dtype:
        raise DataError(f"{name}: train is {parts[0]!r} and test is {parts[1]!r}; shape and type must be the same")
    return DataSplits(
        name,
        parts[0],
        parts[1],
        raw.num_classes,
        raw.source,
        classes_counted=raw.classes_counted,
        held_back=validation is not None,
    )


def _held_out(name: str, raw: RawSplits, validation: int, limit: int | None) -> RawSplits:
    """The training data without ``validation`` of its rows, which take the place of the test data."""
    checks.positive_int(validation=validation)
    total, least = len(raw.x_train), 1 if limit is None else limit
    if len(raw.y_train) != total:
        raise DataError(f"{name} train: {total} inputs but {len(raw.y_train)} labels")
    if total - validation < least:
        raise ValueError(
            f"validation is {validation}, but of {total} training examples at least {least} must be left to train on; "
            f"use at most {max(0, total - least)}" + ("" if limit is None else ", or lower limit")
        )
    rows = public_permutation(total)
    # A limit keeps the first rows of the permutation, so that they are the same with and without validation.
    train, held_out = (
        rows[: total - validation if limit is None else limit].sort().values,
        rows[-validation:].sort().values,
    )
    x, y = raw.x_train, raw.y_train
    return replace(
        raw,
        x_train=x.index_select(0, train),
        y_train=y.index_select(0, train),
        x_test=x.index_select(0, held_out),
        y_test=y.index_select(0, held_out),
    )


def _check_examples(name: str, x: Tensor | LazyRows, y: Tensor, num_classes: int) -> None:
    checks.positive_int(num_classes=num_classes)
    if len(x) == 0:
        raise DataError(f"{name}: there are no examples")
    if len(x) != len(y):
        raise DataError(f"{name}: {len(x)} inputs but {len(y)} labels")
    if y.is_floating_point():
        if y.shape[1:] != (num_classes,) or not bool(y.isfinite().all()):
            raise DataError(f"{name}: targets must be {num_classes} finite numbers each, got shape {tuple(y.shape)}")
    elif y.dim() == 1:
        _check_labels(name, y, num_classes)
    if isinstance(x, Tensor):
        _check_inputs(name, x)


def _check_inputs(name: str, x: Tensor) -> None:
    if x.is_floating_point() and not bool(x.isfinite().all()):
        row = int((~x.flatten(1).isfinite().all(1)).nonzero()[0])
        raise DataError(f"{name}: the input in row {row} has NaN or infinite values; remove or repair it")


def _check_labels(name: str, y: Tensor, num_classes: int) -> None:
    wrong = ((y < 0) | (y >= num_classes)).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"{name}: label {int(y[row])} in row {row} is not in [0, {num_classes}); "
            f"{len(wrong)} labels are out of range. Unless num_classes is given, the number of classes is that of the "
            "training labels: correct the labels, or set num_classes"
        )


def _public_rows(total: int, most: int | None, name: str) -> Tensor | None:
    if most is None:
        return None
    checks.positive_int(**{name: most})
    if most > total:
        raise ValueError(f"{name} is {most}, but there are only {total} examples; use at most {total}, or omit it")
    return public_permutation(total)[:most].sort().values


def public_permutation(total: int) -> Tensor:
    """The rows from 0 to ``total`` in a fixed, public order."""
    # Files are often ordered by class, so the first rows might all be of one class.
    return torch.randperm(total, generator=torch.Generator().manual_seed(PERMUTATION_SEED))
