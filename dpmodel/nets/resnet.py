"""ResNet18 with group normalisation."""

from __future__ import annotations

from functools import partial
from typing import cast

from torch import nn

from dpmodel.nets.initializers import INITIALIZERS, seeded
from monitors import checks


def resnet18(
    num_classes: int = 10, in_channels: int = 3, num_groups: int = 32, init: str = "torch", seed: int | None = None
) -> nn.Module:
    """Torchvision's ResNet18 with GroupNorm in place of BatchNorm, as after ``dpmodel.fix``.

    11,181,642 parameters for ten classes and three channels. It takes images of any size; of a 32 x 32 image, its first
    convolution and pool leave 8 x 8 positions.

    Args:
        num_classes: Width of the last layer.
        in_channels: Channels of the image.
        num_groups: Groups of channels that are normalised together, a divisor of 64.
        init: Name of the initialisation; ``"torch"`` keeps that of torchvision.
        seed: Seed of the initial weights; None uses torch's global generator.

    Returns:
        The network; x (N, in_channels, height, width) -> scores (N, num_classes).

    Raises:
        ValueError: An argument is out of range.

    References:
        He et al. 2016, "Deep Residual Learning for Image Recognition"; Wu and He 2018, "Group Normalization".

    Example:
        >>> sum(parameter.numel() for parameter in resnet18().parameters())
        11181642
    """
    from torchvision.models import ResNet
    from torchvision.models.resnet import BasicBlock

    checks.positive_int(num_classes=num_classes, in_channels=in_channels, num_groups=num_groups)
    if 64 % num_groups:
        raise ValueError(f"num_groups must divide the 64 channels of the first layers, got {num_groups}")
    with seeded(seed):
        network = ResNet(
            BasicBlock, [2, 2, 2, 2], num_classes=num_classes, norm_layer=partial(nn.GroupNorm, num_groups)
        )
        if in_channels != network.conv1.in_channels:
            network.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        INITIALIZERS.create(init, network)
    return cast(nn.Module, network)
