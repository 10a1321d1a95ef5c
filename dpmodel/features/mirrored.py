"""Features that are the same for an image and its mirror image."""

from __future__ import annotations

from torch import Tensor, nn


class Mirrored(nn.Module):
    """The mean of the features of an image and of its mirror image, left and right exchanged.

    For images whose class the mirror does not change, such as photographs, and unlike digits. The difference of the two
    says nothing about the class, and a linear model would have to learn to ignore it, against the noise.

    Args:
        transform: Gives features of each image of shape (..., height, width).

    Shapes:
        As ``transform``; it is called twice.

    Example:
        >>> import torch
        >>> image = torch.rand(1, 3, 8, 8)
        >>> mirrored = Mirrored(nn.AvgPool2d(3))
        >>> torch.allclose(mirrored(image), mirrored(image.flip(-1)))
        True
    """

    def __init__(self, transform: nn.Module) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, x: Tensor) -> Tensor:
        """The mean of both."""
        mean: Tensor = (self.transform(x) + self.transform(x.flip(-1))) / 2
        return mean
