"""LeNet5 as in the MindArmour differential-privacy tutorial."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from dpmodel.nets.activations import build_activation
from dpmodel.nets.initializers import INITIALIZERS, seeded
from monitors import checks


class LeNet5(nn.Module):
    """Two convolutions without bias, three dense layers; 61,684 parameters for ten classes and one channel.

    Args:
        num_classes: Width of the last layer.
        in_channels: Channels of the image.
        activation: Name of the activation: ``"relu"`` as in the tutorial, ``"tanh"`` as in 1998, or any other;
            or a mapping with its name and arguments (``build_activation``).
        init: Name of the initialisation: ``"truncated_normal"`` (0.05, as in the tutorial), ``"torch"``, or any other.
        seed: Seed of the initial weights; None uses torch's global generator.

    Shapes:
        x (N, in_channels, 32, 32) -> scores (N, num_classes).

    References:
        LeCun et al. 1998, "Gradient-based learning applied to document recognition"; MindArmour r1.1, lenet5_dp.py.

    Example:
        >>> sum(parameter.numel() for parameter in LeNet5().parameters())
        61684
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        activation: str | Mapping[str, Any] = "relu",
        init: str = "truncated_normal",
        seed: int | None = None,
    ) -> None:
        super().__init__()
        checks.positive_int(num_classes=num_classes, in_channels=in_channels)
        self.activation = build_activation(activation)
        self.max_pool2d = nn.MaxPool2d(kernel_size=2, stride=2)
        with seeded(seed):
            self.conv1 = nn.Conv2d(in_channels, 6, 5, bias=False)
            self.conv2 = nn.Conv2d(6, 16, 5, bias=False)
            self.fc1 = nn.Linear(16 * 5 * 5, 120)
            self.fc2 = nn.Linear(120, 84)
            self.fc3 = nn.Linear(84, num_classes)
            INITIALIZERS.create(init, self)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of each class."""
        if x.shape[-2:] != (32, 32):
            raise ValueError(
                f"LeNet5 takes 32 x 32 images, got shape {tuple(x.shape)}; set the data's image_size to 32"
            )
        x = self.max_pool2d(self.activation(self.conv1(x)))
        x = self.max_pool2d(self.activation(self.conv2(x)))
        x = x.flatten(1)
        x = self.activation(self.fc1(x))
        x = self.activation(self.fc2(x))
        return cast(Tensor, self.fc3(x))
