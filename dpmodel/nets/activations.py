"""Activation functions by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

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
        scale: Range of the output. The defaults together give exactly tanh.
        temperature: Inverse width of the transition.
        offset: Subtracted from the output.

    References:
        Papernot et al. 2021, "Tempered Sigmoid Activations for Deep Learning with Differential Privacy".

    Example:
        >>> x = torch.linspace(-2, 2, 5)
        >>> torch.allclose(TemperedSigmoid()(x), torch.tanh(x))
        True
    """

    def __init__(self, scale: float = 2.0, temperature: float = 2.0, offset: float = 1.0) -> None:
        super().__init__()
        self.scale, self.temperature, self.offset = scale, temperature, offset

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return self.scale * torch.sigmoid(self.temperature * x) - self.offset

    def extra_repr(self) -> str:
        """The three constants, for ``repr``."""
        return f"scale={self.scale}, temperature={self.temperature}, offset={self.offset}"
