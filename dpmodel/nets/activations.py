"""Activation functions by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from monitors import checks
from monitors.arguments import check_arguments
from monitors.registry import Registry

ACTIVATIONS: Registry[Any] = Registry("activation")
ACTIVATIONS.register("relu")(nn.ReLU)
ACTIVATIONS.register("tanh")(nn.Tanh)
ACTIVATIONS.register("sigmoid")(nn.Sigmoid)
ACTIVATIONS.register("elu")(nn.ELU)
ACTIVATIONS.register("gelu")(nn.GELU)
ACTIVATIONS.register("silu")(nn.SiLU)


@ACTIVATIONS.register("tempered_sigmoid")
class TemperedSigmoid(nn.Module):
    """``scale * sigmoid(temperature * x) - offset``: bounded, so that gradients are small before clipping.

    Args:
        scale: Range of the output, positive. The defaults together give exactly tanh.
        temperature: Inverse width of the transition, positive.
        offset: Subtracted from the output.

    Raises:
        ValueError: An argument is out of range.

    References:
        Papernot et al. 2021, "Tempered Sigmoid Activations for Deep Learning with Differential Privacy" (the inverse
        temperature of the paper is called temperature here).

    Example:
        >>> x = torch.linspace(-2, 2, 5)
        >>> torch.allclose(TemperedSigmoid()(x), torch.tanh(x))
        True
    """

    def __init__(self, scale: float = 2.0, temperature: float = 2.0, offset: float = 1.0) -> None:
        super().__init__()
        checks.positive(scale=scale, temperature=temperature)
        checks.finite(offset=offset)
        self.scale, self.temperature, self.offset = float(scale), float(temperature), float(offset)

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return self.scale * torch.sigmoid(self.temperature * x) - self.offset

    def extra_repr(self) -> str:
        """The three constants, for ``repr``."""
        return f"scale={self.scale}, temperature={self.temperature}, offset={self.offset}"


def build_activation(activation: str | Mapping[str, Any]) -> nn.Module:
    """The activation of a network: a registered name, or a mapping with ``name`` and arguments.

    Raises:
        ValueError: Unknown name or argument (the nearest is suggested), or one is out of range.

    Example:
        >>> build_activation("tanh")
        Tanh()
        >>> build_activation({"name": "tempered_sigmoid", "scale": 1.58, "temperature": 3.0, "offset": 0.71})
        TemperedSigmoid(scale=1.58, temperature=3.0, offset=0.71)
    """
    args = dict(activation) if isinstance(activation, Mapping) else {"name": activation}
    if "name" not in args:
        raise ValueError(f"activation must be a name, or a mapping with the key 'name', got {activation!r}")
    name = args.pop("name")
    builder = ACTIVATIONS.get(name)
    check_arguments(builder, args, f"activation {name!r}")
    try:
        built: nn.Module = builder(**args)
    except TypeError as error:  # a layer of torch that takes none has a signature that takes any
        raise ValueError(f"activation {name!r} cannot be built from {args}: {error}") from error
    return built
