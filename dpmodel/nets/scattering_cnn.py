"""A small CNN on group-normalised features, such as scattering coefficients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from torch import Tensor, nn

from dpmodel.nets.activations import build_activation
from dpmodel.nets.initializers import INITIALIZERS, seeded
from dpmodel.nets.scattering_linear import feature_norm
from monitors import checks
from monitors.registry import Registry

#: Layers after the normalisation, by size: ``build(in_channels, image_size, num_classes, activation)``.
SIZES: Registry[Callable[[int, int, int, Any], list[nn.Module]]] = Registry("size of the scattering CNN")


@SIZES.register("small")
def small(in_channels: int, image_size: int, num_classes: int, activation: str | Mapping[str, Any]) -> list[nn.Module]:
    """Conv 16@3x3 (stride 2), conv 32@3x3, dense 32, dense: for MNIST and Fashion-MNIST."""
    side = (image_size + 1) // 2
    return [
        *(nn.Conv2d(in_channels, 16, 3, stride=2, padding=1), build_activation(activation)),
        *(nn.Conv2d(16, 32, 3, padding=1), build_activation(activation), nn.Flatten()),
        *(nn.Linear(32 * side * side, 32), build_activation(activation), nn.Linear(32, num_classes)),
    ]


@SIZES.register("large")
def large(in_channels: int, image_size: int, num_classes: int, activation: str | Mapping[str, Any]) -> list[nn.Module]:
    """Conv 64@3x3, pool 2, conv 64@3x3, dense: for CIFAR-10."""
    side = image_size // 2
    return [
        *(nn.Conv2d(in_channels, 64, 3, padding=1), build_activation(activation), nn.MaxPool2d(2)),
        *(nn.Conv2d(64, 64, 3, padding=1), build_activation(activation), nn.Flatten()),
        nn.Linear(64 * side * side, num_classes),
    ]


class ScatteringCNN(nn.Module):
    """Group normalisation over the channels of each example, then two convolutions and one or two dense layers.

    Args:
        in_channels: Channels of the features (81 per input channel for scattering with J = 2 and L = 8).
        image_size: Height and width of the features, at least 2 (7 for 28 x 28 images and J = 2, 8 for 32 x 32).
        num_classes: Number of scores.
        size: ``"small"``, the paper's network for MNIST and Fashion-MNIST (33,066 parameters for 81 x 7 x 7), or
            ``"large"``, that for CIFAR-10 (187,210 for 243 x 8 x 8).
        num_groups: See ``ScatteringLinear``.
        activation: Name of the activation; the paper uses ``"tanh"``.
        init: Name of the initialisation; the paper uses ``"torch"``.
        seed: Seed of the initial weights; None uses torch's global generator.

    Shapes:
        x (N, in_channels, image_size, image_size) -> scores (N, num_classes).

    Raises:
        ValueError: An argument is out of range, or ``num_groups`` does not divide ``in_channels``.

    References:
        Tramèr and Boneh 2021, "Differentially Private Learning Needs Better Features (or Much More Data)".

    Example:
        >>> import torch
        >>> ScatteringCNN(in_channels=81, image_size=7)(torch.rand(2, 81, 7, 7)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        in_channels: int,
        image_size: int,
        num_classes: int = 10,
        size: str = "small",
        num_groups: int | None = None,
        activation: str | Mapping[str, Any] = "tanh",
        init: str = "torch",
        seed: int | None = None,
    ) -> None:
        super().__init__()
        checks.positive_int(in_channels=in_channels, image_size=image_size, num_classes=num_classes)
        if image_size < 2:
            raise ValueError(f"image_size must be at least 2 for the scattering CNN, got {image_size}")
        self.norm = feature_norm(in_channels, num_groups)
        with seeded(seed):
            self.layers = nn.Sequential(*SIZES.get(size)(in_channels, image_size, num_classes, activation))
            INITIALIZERS.create(init, self)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of each class."""
        return cast(Tensor, self.layers(self.norm(x)))
