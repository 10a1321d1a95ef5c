"""The definition of a loss case, and data for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mechanisms.engines.batch import all_tensors, map_tensors

#: Number of examples of each case; no other dimension has this size, so none can be mistaken for the batch.
EXAMPLES = 6
FEATURES, CLASSES, LENGTH, WIDTH = 5, 4, 7, 8


@dataclass(frozen=True)
class LossCase:
    """A loss with a network and data for it.

    Args:
        name: What people call it.
        loss: Makes the loss function.
        network: Makes a network in double precision that draws nothing at random.
        x: Makes the inputs of ``EXAMPLES`` examples.
        y: Makes their targets.
        alone: The loss of one example, if it is not the loss of a batch of one; made like ``loss``.
        said: What training says about it, if anything.
        refused: Words of the refusal: what is at fault, the value, and the remedy. None: it is trained.
    """

    name: str
    loss: Callable[[], Callable[[Any, Any], Tensor]]
    network: Callable[[], nn.Module]
    x: Callable[[], Any]
    y: Callable[[], Any]
    alone: Callable[[], Callable[[Any, Any], Tensor]] | None = None
    said: str | None = None
    refused: tuple[str, str, str] | None = None

    def __str__(self) -> str:
        return self.name


def rows(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(EXAMPLES, *shape, dtype=torch.float64)


def chances(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.rand(EXAMPLES, *shape, dtype=torch.float64)


def flags(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randint(0, 2, (EXAMPLES, *shape)).double()


def whole(high: int, *shape: int, low: int = 0) -> Callable[[], Tensor]:
    return lambda: torch.randint(low, high, (EXAMPLES, *shape))


def labels() -> Tensor:
    return torch.arange(EXAMPLES) % CLASSES


def both(*makers: Callable[[], Tensor]) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: tuple(make() for make in makers)


def texts() -> Tensor:
    return torch.randint(3, 12, (EXAMPLES, LENGTH))


def next_tokens(ignored: int) -> Callable[[], Tensor]:
    """Targets of which several are ignored; their number differs between examples."""

    def make() -> Tensor:
        targets = torch.randint(3, 12, (EXAMPLES, LENGTH))
        for row in range(EXAMPLES):
            targets[row, : row % 4] = ignored
        return targets

    return make


features, image = rows(FEATURES), rows(3, 9, 9)
class_weight = torch.tensor([0.1, 1.0, 3.0, 0.5], dtype=torch.float64)


def of(function: Callable[[Any, Any], Tensor]) -> Callable[[], Callable[[Any, Any], Tensor]]:
    """A loss that is used as it is."""
    return lambda: function


def boxes() -> Tensor:
    low = torch.rand(EXAMPLES, 2, dtype=torch.float64)
    return torch.cat([low, low + 0.2 + torch.rand(EXAMPLES, 2, dtype=torch.float64)], dim=1)


def several(make: Callable[[], Any], times: int) -> Any:
    """The concatenated results of several calls of ``make``, as more examples."""
    parts = [make() for _ in range(times)]
    columns = iter([torch.cat(column) for column in zip(*map(all_tensors, parts), strict=True)])
    return map_tensors(lambda _: next(columns), parts[0])
