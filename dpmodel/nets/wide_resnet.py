"""Wide residual networks with group normalisation and weight standardisation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from dpmodel.nets.activations import build_activation
from dpmodel.nets.initializers import INITIALIZERS, seeded
from dpmodel.nets.standardised_conv import StandardisedConv2d
from monitors import checks

#: Channels of the first convolution; stage s has ``STEM * width * 2^s`` channels.
STEM = 16
STAGES = 3


class _Ahead(nn.Sequential):
    """Activation, normalisation, then a convolution."""

    def __init__(self, activation: str | Mapping[str, Any], num_groups: int, conv: nn.Conv2d) -> None:
        super().__init__(build_activation(activation), nn.GroupNorm(num_groups, conv.in_channels), conv)


class _Block(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut, which is a 1 x 1 convolution if the shape changes."""

    def __init__(
        self,
        conv: type[nn.Conv2d],
        before: int,
        after: int,
        stride: int,
        activation: str | Mapping[str, Any],
        num_groups: int,
    ) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            _Ahead(activation, num_groups, conv(before, after, 3, stride, 1)),
            _Ahead(activation, num_groups, conv(after, after, 3, 1, 1)),
        )
        self.shortcut: nn.Module = (
            nn.Identity()
            if before == after and stride == 1
            else _Ahead(activation, num_groups, conv(before, after, 1, stride))
        )

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both ways."""
        return cast(Tensor, self.residual(x) + self.shortcut(x))


class WideResNet(nn.Module):
    """A wide residual network in the form that trains best with privacy; WRN-16-4 has 2,753,818 parameters.

    Activations come before the normalisation, every convolution has a bias, shortcuts that change the shape are
    normalised, and there is no dropout.

    Args:
        num_classes: Width of the last layer.
        in_channels: Channels of the image.
        depth: Number of layers, ``6 n + 4`` (16, 28, 40).
        width: Factor of the channels.
        num_groups: Groups of channels that are normalised together, a divisor of 16.
        weight_standardisation: Use ``StandardisedConv2d`` in place of ``torch.nn.Conv2d``.
        activation: Name of the activation.
        init: Name of the initialisation; with weight standardisation, its scale has no effect on convolutions.
        seed: Seed of the initial weights; None uses torch's global generator.

    Shapes:
        x (N, in_channels, height, width) -> scores (N, num_classes).

    Raises:
        ValueError: An argument is out of range.

    References:
        Zagoruyko and Komodakis 2016, "Wide Residual Networks"; De et al. 2022, "Unlocking High-Accuracy Differentially
        Private Image Classification through Scale".

    Example:
        >>> sum(parameter.numel() for parameter in WideResNet().parameters())
        2753818
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        depth: int = 16,
        width: int = 4,
        num_groups: int = 16,
        weight_standardisation: bool = True,
        activation: str | Mapping[str, Any] = "relu",
        init: str = "torch",
        seed: int | None = None,
    ) -> None:
        super().__init__()
        checks.positive_int(num_classes=num_classes, in_channels=in_channels, width=width, num_groups=num_groups)
        checks.one_of((True, False), weight_standardisation=weight_standardisation)
        if depth < 10 or depth % 6 != 4:
            raise ValueError(f"depth must be 6 n + 4 for some n (10, 16, 22, 28, ...), got {depth}")
        if STEM % num_groups:
            raise ValueError(f"num_groups must divide the {STEM} channels of the first layer, got {num_groups}")
        conv = StandardisedConv2d if weight_standardisation else nn.Conv2d
        layers: list[nn.Module] = []
        with seeded(seed):
            layers.append(conv(in_channels, STEM, 3, 1, 1))
            before = STEM
            for stage in range(STAGES):
                after = STEM * width * 2**stage
                for index in range((depth - 4) // 6):
                    stride = 2 if stage and not index else 1
                    layers.append(_Block(conv, before, after, stride, activation, num_groups))
                    before = after
            layers += [build_activation(activation), nn.GroupNorm(num_groups, before)]
            self.features = nn.Sequential(*layers)
            self.classifier = nn.Linear(before, num_classes)
            INITIALIZERS.create(init, self)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of each class."""
        return cast(Tensor, self.classifier(self.features(x).mean((2, 3))))
