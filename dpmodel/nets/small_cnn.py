"""A small tanh network that works well for differentially private training from scratch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from dpmodel.nets.activations import build_activation
from dpmodel.nets.initializers import INITIALIZERS, seeded
from monitors import checks

HIDDEN = 32


class SmallCNN(nn.Module):
    """Two tanh convolutions with overlapping pools and two dense layers; 26,010 parameters for 28 x 28 grey images.

    Conv 16@8x8 (stride 2, padding 2), pool 2 (stride 1), conv 32@4x4 (stride 2), pool 2 (stride 1), dense 32, dense.

    Args:
        num_classes: Width of the last layer.
        in_channels: Channels of the image.
        image_size: Height and width of the image, at least 20.
        activation: Name of the activation; the paper uses ``"tanh"``. Or a mapping with its name and arguments
            (``build_activation``).
        init: Name of the initialisation; the paper uses ``"torch"``.
        seed: Seed of the initial weights; None uses torch's global generator.

    Shapes:
        x (N, in_channels, image_size, image_size) -> scores (N, num_classes).

    References:
        Tramer and Boneh 2021, "Differentially Private Learning Needs Better Features (or Much More Data)", table 9.

    Example:
        >>> sum(parameter.numel() for parameter in SmallCNN().parameters())
        26010
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        image_size: int = 28,
        activation: str | Mapping[str, Any] = "tanh",
        init: str = "torch",
        seed: int | None = None,
    ) -> None:
        super().__init__()
        checks.positive_int(num_classes=num_classes, in_channels=in_channels, image_size=image_size)
        side = _side_after_features(image_size)
        if side < 1:
            raise ValueError(f"image_size must be at least 20 for the small CNN, got {image_size}")
        with seeded(seed):
            self.features = nn.Sequential(
                nn.Conv2d(in_channels, 16, 8, stride=2, padding=2),
                build_activation(activation),
                nn.MaxPool2d(2, stride=1),
                nn.Conv2d(16, 32, 4, stride=2),
                build_activation(activation),
                nn.MaxPool2d(2, stride=1),
            )
            self.classifier = nn.Sequential(
                nn.Linear(32 * side * side, HIDDEN), build_activation(activation), nn.Linear(HIDDEN, num_classes)
            )
            INITIALIZERS.create(init, self)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of each class."""
        return cast(Tensor, self.classifier(self.features(x).flatten(1)))


def _side_after_features(image_size: int) -> int:
    first = (image_size + 4 - 8) // 2 + 1 - 1
    return (first - 4) // 2 + 1 - 1
