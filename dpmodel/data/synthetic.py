"""A small synthetic classification problem, for tests and first steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dpmodel.data.splits import RawSplits
from monitors import checks


def synthetic(
    num_train: int = 1024,
    num_test: int = 256,
    num_classes: int = 10,
    shape: Sequence[int] = (1, 32, 32),
    noise: float = 0.5,
    seed: int = 0,
) -> RawSplits:
    """uint8 images: a random smooth pattern per class, plus noise. The same ``seed`` gives the same data everywhere.

    Args:
        num_train: Number of training examples.
        num_test: Number of test examples.
        num_classes: Number of classes; labels are drawn uniformly.
        shape: (channels, height, width).
        noise: Standard deviation of the noise, relative to that of the patterns; 0.5 is easy, 3 is hard.
        seed: Public seed.

    Example:
        >>> raw = synthetic(num_train=8, num_test=4)
        >>> raw.x_train.shape, raw.x_train.dtype
        (torch.Size([8, 1, 32, 32]), torch.uint8)
    """
    checks.positive_int(num_train=num_train, num_test=num_test, num_classes=num_classes)
    checks.non_negative(noise=noise)
    checks.non_negative_int(seed=seed)
    if len(shape) != 3:
        raise ValueError(f"shape must be (channels, height, width), got {tuple(shape)}")
    generator = torch.Generator().manual_seed(seed)
    channels, height, width = (int(size) for size in shape)
    coarse = torch.randn((num_classes, channels, 4, 4), generator=generator)
    patterns = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)

    def part(count: int) -> tuple[Tensor, Tensor]:
        labels = torch.randint(num_classes, (count,), generator=generator)
        drawn = patterns[labels] + noise * torch.randn((count, channels, height, width), generator=generator)
        return (128.0 + 40.0 * drawn).round_().clamp_(0, 255).to(torch.uint8), labels

    train, test = part(num_train), part(num_test)
    return RawSplits(*train, *test, num_classes=num_classes, source=f"synthetic, seed {seed}")
