"""A linear classifier on group-normalised features, such as scattering coefficients."""

from __future__ import annotations

import math
from typing import cast

from torch import Tensor, nn

from dpmodel.nets.initializers import INITIALIZERS, seeded
from monitors import checks


class ScatteringLinear(nn.Module):
    """Group normalisation over the channels of each example, then one dense layer.

    The normalisation has no parameters and uses the statistics of the example alone, which costs no privacy.

    Args:
        in_channels: Channels of the features (81 per input channel for scattering with J = 2 and L = 8).
        in_features: Numbers per example.
        num_classes: Number of scores.
        num_groups: Groups of channels that are normalised together; must divide ``in_channels``. None: the greatest
            common divisor of 27 and ``in_channels``, which is 27 for scattering with J = 2 and L = 8. 0: no
            normalisation, for features that are normalised already.
        init: Name of the initialisation.
        seed: Seed of the initial weights; None uses torch's global generator.

    Shapes:
        x (N, in_channels, ...) with ``in_features`` numbers per example -> scores (N, num_classes).

    Raises:
        ValueError: An argument is out of range, or ``num_groups`` does not divide ``in_channels``.

    References:
        Tramèr and Boneh 2021, "Differentially Private Learning Needs Better Features (or Much More Data)".

    Example:
        >>> import torch
        >>> ScatteringLinear(in_channels=81, in_features=81 * 7 * 7)(torch.rand(2, 81, 7, 7)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        in_channels: int,
        in_features: int,
        num_classes: int = 10,
        num_groups: int | None = None,
        init: str = "torch",
        seed: int | None = None,
    ) -> None:
        super().__init__()
        checks.positive_int(in_channels=in_channels, in_features=in_features, num_classes=num_classes)
        self.norm = feature_norm(in_channels, num_groups)
        with seeded(seed):
            self.linear = nn.Linear(in_features, num_classes)
            INITIALIZERS.create(init, self)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of each class."""
        return cast(Tensor, self.linear(self.norm(x).flatten(1)))


def feature_norm(in_channels: int, num_groups: int | None) -> nn.Module:
    """Group normalisation of features without parameters; see ``ScatteringLinear`` for the arguments."""
    groups = math.gcd(27, in_channels) if num_groups is None else num_groups
    checks.non_negative_int(num_groups=groups)
    if groups == 0:
        return nn.Identity()
    if in_channels % groups:
        raise ValueError(f"num_groups must divide the {in_channels} channels of the features, got {groups}")
    return nn.GroupNorm(groups, in_channels, affine=False)
