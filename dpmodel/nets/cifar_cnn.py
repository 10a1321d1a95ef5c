"""The end-to-end tanh network for CIFAR-10."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from dpmodel.nets.activations import build_activation
from dpmodel.nets.initializers import INITIALIZERS, seeded
from monitors import checks

#: Channels of the two convolutions before each pool, and units of the hidden dense layer.
CHANNELS, HIDDEN = (32, 64, 128), 128


class CifarCNN(nn.Module):
    """Six tanh convolutions, three pools and two dense layers; 550,570 parameters for 32 x 32 colour images.

    Twice each: conv 32@3x3, conv 64@3x3, conv 128@3x3 (stride 1, padding 1); after each pair, pool 2 (stride 2). Then
    dense 128, dense.

    Args:
        num_classes: Width of the last layer.
        in_channels: Channels of the image.
        image_size: Height and width of the image, at least 8.
        activation: Name of the activation; the paper uses ``"tanh"``.
        init: Name of the initialisation; the paper uses ``"torch"``.
        seed: Seed of the initial weights; None uses torch's global generator.

    Shapes:
        x (N, in_channels, image_size, image_size) -> scores (N, num_classes).

    References:
        Tramèr and Boneh 2021, "Differentially Private Learning Needs Better Features (or Much More Data)"; after
        Papernot et al. 2021, "Tempered Sigmoid Activations for Deep Learning with Differential Privacy".

    Example:
        >>> sum(parameter.numel() for parameter in CifarCNN().parameters())
        550570
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: int = 32,
        activation: str | Mapping[str, Any] = "tanh",
        init: str = "torch",
        seed: int | None = None,
    ) -> None:
        super().__init__()
        checks.positive_int(num_classes=num_classes, in_channels=in_channels, image_size=image_size)
        side = image_size // 2 ** len(CHANNELS)
        if side < 1:
            raise ValueError(f"image_size must be at least 8 for the CIFAR CNN, got {image_size}")
        layers: list[nn.Module] = []
        with seeded(seed):
            before = in_channels
            for width in CHANNELS:
                for inputs in (before, width):
                    layers += [nn.Conv2d(inputs, width, 3, padding=1), build_activation(activation)]
                layers.append(nn.MaxPool2d(2))
                before = width
            self.features = nn.Sequential(*layers)
            self.classifier = nn.Sequential(
                nn.Linear(before * side * side, HIDDEN), build_activation(activation), nn.Linear(HIDDEN, num_classes)
            )
            INITIALIZERS.create(init, self)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of each class."""
        return cast(Tensor, self.classifier(self.features(x).flatten(1)))
