"""Canaries: rows whose gradient is known, in the data of an ordinary training.

A canary row has the gradient ``10 C`` in its own coordinate of two added tensors, and no other row touches these
coordinates. What is released there is the noise, plus the canary's clipped gradient if the canary was drawn.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from dpmodel.augmentation.transforms import Transform
from dpmodel.data.contents import copied
from dpmodel.data.loader import PrivateLoader, StepRows, split_pair
from mechanisms.engines.batch import call_network, first_tensor
from mechanisms.engines.losses import ExampleLosses
from monitors.errors import ConfigError

#: A canary's gradient norm over the initial norm bound, so that clipping is always at work.
STRENGTH = 10.0

#: Fewest canaries from which a bound can be expected.
FEWEST = 100

#: The index of a row that is not a canary. Canaries count from 1, and rows that contribute nothing from -1 downwards.
ORDINARY = 0

#: Names of the two tensors that hold the canaries' coordinates.
TABLES = ("first_canaries", "second_canaries")


class CanaryNetwork(nn.Module):
    """A network beside two tables with one number per canary, zero at first.

    Args:
        network: The network; its outputs are the first output of this one.
        canaries: Number of canaries.
        strength: Norm of a canary's gradient.
    """

    def __init__(self, network: nn.Module, canaries: int, strength: float) -> None:
        super().__init__()
        self.network = network
        self.scale = strength / 2**0.5
        for name in TABLES:
            table = nn.Embedding(canaries + 1, 1)
            nn.init.zeros_(table.weight)
            self.add_module(name, table)

    def forward(self, inputs: Any, index: Tensor) -> tuple[Any, Tensor, Tensor]:
        """Outputs of the network, the loss of each row as a canary, and the index of each row."""
        row = index.clamp(min=0)
        first, second = (self.get_submodule(name)(row).squeeze(-1) for name in TABLES)
        return call_network(self.network, inputs), self.scale * (first + second), index


@dataclass(frozen=True)
class OfInputs:
    """A transform of the inputs of rows, which leaves their indices alone.

    Args:
        transform: The transform of the audited training's augmentation.
    """

    transform: Transform

    @property
    def numbers(self) -> int:
        """Random numbers that one view takes."""
        return self.transform.numbers

    def __call__(self, rows: Sequence[Any], numbers: Tensor) -> tuple[Any, Tensor]:
        """``(transformed inputs, index)``."""
        inputs, index = rows
        return self.transform(inputs, numbers), index


class CanaryLoss(nn.Module):
    """The loss of an ordinary row, ``10 C w_i`` for a canary, and 0 for a blank row.

    Args:
        loss_fn: The loss of ordinary rows.
    """

    def __init__(self, loss_fn: Callable[..., Tensor]) -> None:
        super().__init__()
        self.losses = ExampleLosses(loss_fn)
        self.reduction = "mean"

    def forward(self, outputs: tuple[Any, Tensor, Tensor], targets: Any) -> Tensor:
        """Losses of shape (B,), or their mean."""
        ordinary, value, index = outputs
        own = self.losses(ordinary, targets)
        found = torch.where(index > ORDINARY, value, torch.where(index == ORDINARY, own, torch.zeros_like(own)))
        return found if self.reduction == "none" else found.mean()


class CanaryRows(Dataset[Any]):
    """Ordinary examples, then one row per canary: a canary that is in the data, or a blank row.

    A blank row has a gradient of zero, as if it were not there, so that the public number of rows says nothing about
    the coins.

    Args:
        examples: Ordinary examples; each canary row holds a copy of one of them, so that no two rows share anything.
        included: The coins, shape (m,).
    """

    def __init__(self, examples: Sequence[Any], included: NDArray[np.bool_]) -> None:
        self.examples = [*examples, *(copied(examples[row % len(examples)]) for row in range(len(included)))]
        marks = np.arange(1, len(included) + 1) * np.where(included, 1, -1)
        self.index = torch.from_numpy(np.concatenate([np.full(len(examples), ORDINARY), marks]).astype(np.int64))

    def blank(self) -> None:
        """Make all rows blank: from now on, whatever is released of them is noise."""
        self.index = -torch.arange(1, len(self) + 1)

    def __getitem__(self, row: int) -> tuple[tuple[Any, Tensor], Any]:
        inputs, targets = split_pair(self.examples[row])
        return (inputs, self.index[row]), targets

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True)
class CanaryCollation:
    """Collates the ordinary parts of rows as the audited training does.

    Args:
        collate: The ``collate_fn`` of the audited training.
    """

    collate: Callable[[list[Any]], Any]

    def __call__(self, rows: list[tuple[tuple[Any, Tensor], Any]]) -> tuple[tuple[Any, Tensor], Any]:
        """``((inputs, index), targets)``."""
        examples = [
            (*inputs, targets) if isinstance(inputs, tuple) else (inputs, targets) for (inputs, _), targets in rows
        ]
        inputs, targets = split_pair(self.collate(examples))
        return (inputs, torch.stack([index for (_, index), _ in rows])), targets


class _WatchedRows:
    """Gives the rows of a sampler and keeps them."""

    def __init__(self, sampler: StepRows, drawn: list[NDArray[np.int64]]) -> None:
        self.sampler = sampler
        self.drawn = drawn

    def rows(self, step: int) -> np.ndarray:
        rows = self.sampler.rows(step)
        self.drawn.append(np.asarray(rows))
        return rows


class WatchedLoader(PrivateLoader):
    """A loader that keeps which rows were drawn, in ``drawn``."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.drawn: list[NDArray[np.int64]] = []

    def batches(self, sampler: StepRows, first: int, steps: int, **options: Any) -> Iterator[Any]:
        """As ``PrivateLoader.batches``."""
        return super().batches(_WatchedRows(sampler, self.drawn), first, steps, **options)


def read_examples(loader: PrivateLoader, most: int) -> list[Any]:
    """At most ``most`` examples from all over the data, as the data set gives them.

    Raises:
        ConfigError: The data are a stream, or there are fewer than two examples.
    """
    if loader.stream is not None:
        raise ConfigError("a stream of examples cannot be audited, because it can be read only once; give a data set")
    if loader.num_examples < 2:
        raise ConfigError(f"an audit needs at least 2 examples, got {loader.num_examples}")
    rows = np.unique(np.linspace(0, loader.num_examples - 1, min(most, loader.num_examples)).astype(int))
    examples = [loader.dataset[int(row)] for row in rows]
    first_tensor(loader.fetcher.collate(examples[:2])[1])
    return examples


def flip_coins(canaries: int) -> NDArray[np.bool_]:
    """A secret fair coin for each canary."""
    found: NDArray[np.bool_] = np.random.default_rng(secrets.randbits(128)).random(canaries) < 0.5
    return found
