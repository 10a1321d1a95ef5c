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
    """Parameters that require a gradient, tied ones once, by name.

    Raises:
        UnsupportedModuleError: There is none, or one is complex.
    """
    found = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    for name, parameter in found.items():
        if parameter.is_complex():
            raise UnsupportedModuleError(
                f"parameter {name!r} is complex; keep it as a real parameter with a last dimension of 2 and use "
                "torch.view_as_complex in the forward pass"
            )
    if not found:
        raise UnsupportedModuleError(
            f"{type(network).__name__} has no parameter that requires a gradient; unfreeze some before training"
        )
    return found


def hooked_parameter(network: nn.Module) -> str | None:
    """Name of a trainable parameter with a hook on its gradient, which autograd alone calls; None if there is none."""
    return next((name for name, value in trainable_parameters(network).items() if value._backward_hooks), None)


def slots(network: nn.Module) -> dict[str, Tensor]:
    """What lies in each place for a parameter or buffer, by name; a module with several names is listed under one.

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
    """Where each parameter lies in the flat vector.

    Args:
        names: Parameter names in order.
        shapes: Their shapes.
        dtype: Type of norms, sums and noise: float64 if a parameter is, else float32 (also for half precision).
        device: Where the parameters are.
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
        """The layout of the parameters of that name, of which there is at least one."""
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
        """Zeros of that shape, of the type and on the device of norms and sums."""
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def views(self, flat: Tensor) -> list[Tensor]:
        """``flat`` of shape (P,) as views in the parameters' shapes."""
        return [part.view(shape) for part, shape in zip(flat.split(self.sizes), self.shapes, strict=True)]

    def columns(self, flat: Tensor) -> list[Tensor]:
        """``flat`` of shape (U, P) as one view of shape (U, entries) per parameter."""
        return list(flat.split(self.sizes, dim=1))

    def flatten(self, gradients: Sequence[Tensor | None], like: Tensor, out: Tensor | None = None) -> Tensor:
        """Gradients in the parameters' shapes as one vector (P,), written to ``out``; None counts as zeros."""
        parts = [
            like.new_zeros(size) if gradient is None else gradient.to_dense().reshape(-1)
            for gradient, size in zip(gradients, self.sizes, strict=True)
        ]
        return torch.cat(parts, out=out)
