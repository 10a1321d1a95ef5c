"""Number of times that optimizers of this process were stepped: fused steps raise no version of a tensor."""

from __future__ import annotations

from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook

_taken = [0]


def optimizer_steps() -> int:
    """How often any optimizer has taken a step since this module was imported; replayed updates do not count.

    Example:
        >>> import torch
        >>> before = optimizer_steps()
        >>> torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1).step()
        >>> optimizer_steps() - before
        1
    """
    return _taken[0]


def _count(optimizer: Any, args: Any, kwargs: Any) -> None:
    del optimizer, args, kwargs
    _taken[0] += 1


register_optimizer_step_post_hook(_count)
