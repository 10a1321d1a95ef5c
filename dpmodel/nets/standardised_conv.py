"""Weight standardisation: a convolution that is independent of the mean and the scale of its weight."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from mechanisms.engines.bookkeeping.layers import layer_rule
from mechanisms.engines.bookkeeping.layers.standardised import Standardised, StandardisedConvolutionRule
from monitors import checks


class StandardisedConv2d(nn.Conv2d):
    """A convolution whose weight is standardised per output channel: mean 0 and norm ``gain``.

    It reads the weight alone, no data, so examples stay independent and no statistics are released.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        *arguments: Further arguments of ``torch.nn.Conv2d``: kernel size, stride, padding, ...
        eps: Smallest squared norm by which a channel is divided.
        **options: The same by name.

    Attributes:
        gain: Norm of each channel of the standardised weight, shape (out_channels,); trained, 1 at first.

    References:
        Qiao et al. 2019, "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization"; De et al.
        2022, "Unlocking High-Accuracy Differentially Private Image Classification through Scale".

    Example:
        >>> layer = StandardisedConv2d(3, 8, 3, padding=1)
        >>> x, before = torch.randn(2, 3, 5, 5), layer.weight.detach().clone()
        >>> expected = layer(x)
        >>> _ = torch.nn.init.constant_(layer.bias, 0.0), layer.weight.data.copy_(7 * before + 2)
        >>> torch.allclose(layer(x) - expected, layer(x)[:1, :, :1, :1] - expected[:1, :, :1, :1], atol=1e-4)
        True
    """

    def __init__(self, in_channels: int, out_channels: int, *arguments: Any, eps: float = 1e-4, **options: Any) -> None:
        super().__init__(in_channels, out_channels, *arguments, **options)
        checks.positive(eps=eps)
        self.eps = eps
        self.gain = nn.Parameter(torch.ones(out_channels, device=self.weight.device, dtype=self.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """The convolution with the standardised weight."""
        rows = Standardised.of(self.weight, self.eps).rows * self.gain.unsqueeze(1)
        return cast(Tensor, self._conv_forward(x, rows.view_as(self.weight), self.bias))

    def extra_repr(self) -> str:
        """The arguments, for ``repr``."""
        return f"{super().extra_repr()}, eps={self.eps:g}"  # type: ignore[no-untyped-call]


layer_rule(StandardisedConv2d)(StandardisedConvolutionRule)
