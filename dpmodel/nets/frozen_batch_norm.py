"""Batch normalisation with fixed statistics: one scale and one shift per channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class FrozenBatchNorm(nn.Module):
    """Batch normalisation that computes in every mode what the original layer computes in evaluation mode.

    It does not mix examples and has no parameters, so a pretrained backbone keeps its features in a private training.
    Its statistics come from the data that the backbone was trained on, which must be public or accounted for.

    Args:
        scale: Factor of each channel, shape (C,).
        shift: Offset of each channel, shape (C,).

    Example:
        >>> layer = nn.BatchNorm2d(3).eval()
        >>> x = torch.randn(2, 3, 4, 4)
        >>> torch.allclose(FrozenBatchNorm.of(layer)(x), layer(x), atol=1e-6)
        True
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    @classmethod
    def of(cls, layer: _BatchNorm) -> FrozenBatchNorm:
        """The frozen form of a layer with running statistics.

        Raises:
            ValueError: The layer has no running statistics.
        """
        if layer.running_mean is None or layer.running_var is None:
            raise ValueError(f"{layer} has no running statistics to freeze; it needs track_running_stats=True")
        weight = torch.ones_like(layer.running_mean) if layer.weight is None else layer.weight.detach()
        bias = torch.zeros_like(layer.running_mean) if layer.bias is None else layer.bias.detach()
        scale = weight * (layer.running_var + layer.eps).rsqrt()
        return cls(scale, bias - layer.running_mean * scale)

    def forward(self, x: Tensor) -> Tensor:
        """``x * scale + shift`` along the channels, dimension 1."""
        shape = (1, -1, *[1] * (x.dim() - 2))
        return x * self.scale.view(shape) + self.shift.view(shape)

    def extra_repr(self) -> str:
        """The number of channels."""
        return str(len(self.scale))
