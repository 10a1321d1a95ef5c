"""The trainable parameters of a network as one flat vector, in the order of ``named_parameters``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from monitors.errors import UnsupportedModuleError


def trainable_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that require a gradient, tied ones once, by name.

    Raises:
        UnsupportedModuleError: There is none.
    """
    found = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    if not found:
        raise UnsupportedModuleError(
            f"{type(network).__name__} has no parameter that requires a gradient; unfreeze some before training"
        )
    return found


@dataclass(frozen=True)
class FlatLayout:
    """Where each parameter lies in the flat vector.

    Args:
        names: Parameter names in order.
        shapes: Their shapes.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    @classmethod
    def of(cls, network: nn.Module) -> FlatLayout:
        """The layout of the trainable parameters of ``network``."""
        parameters = trainable_parameters(network)
        return cls(tuple(parameters), tuple(parameter.shape for parameter in parameters.values()))

    @property
    def sizes(self) -> list[int]:
        """Number of entries of each parameter."""
        return [math.prod(shape) for shape in self.shapes]

    @property
    def size(self) -> int:
        """Length P of the flat vector."""
        return sum(self.sizes)

    def views(self, flat: Tensor) -> list[Tensor]:
        """``flat`` of shape (P,) as views in the parameters' shapes."""
        return [part.view(shape) for part, shape in zip(flat.split(self.sizes), self.shapes, strict=True)]

    def columns(self, flat: Tensor) -> list[Tensor]:
        """``flat`` of shape (U, P) as one view of shape (U, entries) per parameter."""
        return list(flat.split(self.sizes, dim=1))

    def flatten(self, gradients: Sequence[Tensor | None], like: Tensor) -> Tensor:
        """Gradients in the parameters' shapes as one vector (P,); None counts as zeros."""
        parts = [
            like.new_zeros(size) if gradient is None else gradient.reshape(-1)
            for gradient, size in zip(gradients, self.sizes, strict=True)
        ]
        return torch.cat(parts)


def flat_dtype(network: nn.Module) -> torch.dtype:
    """Type of norms, sums and noise: float64 if a trainable parameter is, else float32 (also for half precision)."""
    types = {parameter.dtype for parameter in trainable_parameters(network).values()}
    return torch.float64 if torch.float64 in types else torch.float32
