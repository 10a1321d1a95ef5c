"""A network whose logits are given."""

from __future__ import annotations

import torch
from torch import nn


class Fixed(nn.Module):
    """Returns the given logits, whatever the input."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.as_tensor(logits)

    def forward(self, x):
        return self.logits[: len(x)]
