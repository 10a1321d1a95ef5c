"""The examples of an attack: training examples, held-out ones, and a public population in no training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpmodel.data.in_memory import InMemoryDataset
from dpmodel.data.splits import DataSplits, public_permutation
from monitors.errors import ConfigError, DataError

Bools = NDArray[np.bool_]

#: Part of the held-out examples that is set aside as the population, and most of them.
_POPULATION, _MOST_POPULATION = 0.2, 1000

#: Fewest examples of each kind of which anything can be said.
FEWEST = 20


@dataclass(frozen=True)
class Pool:
    """Attacked examples first (training examples, then held-out ones), then the population.

    Args:
        data: All of them.
        train: Number of training examples.
        held_out: Number of held-out examples that are attacked.
        num_classes: Number of classes, or of numbers to predict.
        name: Name of the data set.
        rows: Row of each attacked example in its part of the data set, shape (train + held_out,).
    """

    data: InMemoryDataset
    train: int
    held_out: int
    num_classes: int
    name: str
    rows: NDArray[np.int64]

    @classmethod
    def of(cls, splits: DataSplits, examples: int | None = None) -> Pool:
        """The pool of a data set.

        The population is the last fifth of a public permutation of the held-out examples, at most 1,000, whichever
        attack is made.

        Args:
            splits: The data.
            examples: Most attacked examples of each kind, the first ones of a public permutation. None: all.

        Raises:
            ConfigError: Too few examples of a kind.
        """
        order = public_permutation(len(splits.test))
        population = min(_MOST_POPULATION, int(_POPULATION * len(order)))
        members = public_permutation(len(splits.train))[:examples].sort().values
        attacked = order[: len(order) - population][:examples].sort().values
        for kind, rows in (("training", members), ("held-out", attacked)):
            if len(rows) < FEWEST:
                raise ConfigError(
                    f"an attack needs at least {FEWEST} {kind} examples, got {len(rows)}: raise --examples, data.limit "
                    "or data.test_limit (a fifth of the held-out examples is set aside as the population)"
                )
        chosen = order[len(order) - population :].sort().values
        return cls(
            _joined(_part(splits.train, members), _part(splits.test, torch.cat([attacked, chosen]))),
            len(members),
            len(attacked),
            splits.num_classes,
            splits.name,
            torch.cat([members, attacked]).numpy(),
        )

    @property
    def size(self) -> int:
        """Number of attacked examples."""
        return self.train + self.held_out

    @property
    def population(self) -> int:
        """Number of examples of the population."""
        return len(self.data) - self.size

    @property
    def members(self) -> Bools:
        """Which attacked examples are training examples, shape (``size``,)."""
        found: Bools = np.arange(self.size) < self.train
        return found

    @property
    def targets(self) -> Tensor:
        """Targets of all examples."""
        return self.data.y

    def names(self) -> list[str]:
        """A name for each attacked example: its part of the data set, and its row there."""
        parts = ["train"] * self.train + ["held-out"] * self.held_out
        return [f"{part} {row}" for part, row in zip(parts, self.rows, strict=True)]

    def splits(self, included: Bools) -> DataSplits:
        """A data set whose training examples are the ``included`` ones, shape (``size``,).

        Its test data are the population, or the other examples if there is none.
        """
        rows = torch.from_numpy(np.flatnonzero(included))
        rest = np.arange(self.size, len(self.data)) if self.population else np.flatnonzero(~included)
        return DataSplits(
            self.name, _part(self.data, rows), _part(self.data, torch.from_numpy(rest)), self.num_classes, "attack"
        )


def _part(data: InMemoryDataset, rows: Tensor) -> InMemoryDataset:
    mean, std = data.constants
    rows = rows.to(data.x.device)
    return InMemoryDataset(data.x.index_select(0, rows), data.y.index_select(0, rows), mean=mean, std=std)


def _joined(first: InMemoryDataset, second: InMemoryDataset) -> InMemoryDataset:
    if first.x.shape[1:] != second.x.shape[1:] or first.x.dtype != second.x.dtype or first.y.dtype != second.y.dtype:
        raise DataError(f"members are {first!r} and others are {second!r}; shape and type must be the same")
    mean, std = first.constants
    return InMemoryDataset(torch.cat([first.x, second.x]), torch.cat([first.y, second.y]), mean=mean, std=std)
