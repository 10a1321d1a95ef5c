"""The trainable parameters of a network as one flat vector, in the order of ``named_parameters``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from monitors.errors import UnsupportedModuleError

CPU = torch.device("cpu")


def trainable_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that require a gradient, by name; tied parameters appear once.

    Raises:
        UnsupportedModuleError: There are none, or one is complex.
    """
    found = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    for name, parameter in found.items():
        if parameter.is_complex():
            raise UnsupportedModuleError(
                f"parameter {name!r} is complex; store it as a real parameter with a last dimension of 2 and use "
                "torch.view_as_complex in the forward pass"
            )
    if not found:
        raise UnsupportedModuleError(
            f"{type(network).__name__} has no parameter that requires a gradient; unfreeze some before training"
        )
    return found


def hooked_parameter(network: nn.Module) -> str | None:
    """Name of a trainable parameter with a gradient hook, which only autograd calls; None if there is none."""
    return next((name for name, value in trainable_parameters(network).items() if value._backward_hooks), None)


def slots(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by the name of their slot; a module with several names is listed under one.

    Unlike in ``named_parameters``, a tied parameter appears in each of its slots.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> list(slots(nn.ModuleDict({"one": layer, "same": layer})))
        ['one.weight', 'one.bias']
    """
    found = {}
    for prefix, module in network.named_modules():
        for name, value in (*module._parameters.items(), *module._buffers.items()):
            if value is not None:
                found[f"{prefix}.{name}" if prefix else name] = value
    return found


@dataclass(frozen=True)
class FlatLayout:
    """Position of each parameter in the flat vector.

    Args:
        names: Parameter names in order.
        shapes: Their shapes.
        dtype: Type of norms, sums and noise: float64 if any parameter is, else float32 (also for half precision).
        device: Device of the parameters.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    dtype: torch.dtype = torch.float32
    device: torch.device = CPU

    @classmethod
    def of(cls, network: nn.Module) -> FlatLayout:
        """The layout of the trainable parameters of ``network``."""
        return cls.of_parameters(trainable_parameters(network))

    @classmethod
    def of_parameters(cls, parameters: Mapping[str, Tensor]) -> FlatLayout:
        """The layout of ``parameters``, at least one, by name."""
        values = list(parameters.values())
        wide = any(value.dtype == torch.float64 for value in values)
        shapes = tuple(value.shape for value in values)
        return cls(tuple(parameters), shapes, torch.float64 if wide else torch.float32, values[0].device)

    @cached_property
    def sizes(self) -> list[int]:
        """Number of entries of each parameter."""
        return [math.prod(shape) for shape in self.shapes]

    @cached_property
    def size(self) -> int:
        """Length P of the flat vector."""
        return sum(self.sizes)

    def zeros(self, *shape: int) -> Tensor:
        """Zeros of that shape, with the dtype and device of norms and sums."""
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def views(self, flat: Tensor) -> list[Tensor]:
        """Views of ``flat``, shape (P,), in the shapes of the parameters."""
        return [part.view(shape) for part, shape in zip(flat.split(self.sizes), self.shapes, strict=True)]

    def columns(self, flat: Tensor) -> list[Tensor]:
        """Views of ``flat``, shape (U, P), one of shape (U, entries) per parameter."""
        return list(flat.split(self.sizes, dim=1))

    def flatten(self, gradients: Sequence[Tensor | None], like: Tensor, out: Tensor | None = None) -> Tensor:
        """Concatenate gradients in the parameters' shapes to one vector (P,), in ``out``; None counts as zeros."""
        parts = [
            like.new_zeros(size) if gradient is None else gradient.to_dense().reshape(-1)
            for gradient, size in zip(gradients, self.sizes, strict=True)
        ]
        return torch.cat(parts, out=out)
