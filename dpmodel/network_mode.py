"""The mode of a network for a while: training or evaluation, and afterwards as each of its layers was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def mode(network: nn.Module, *, training: bool) -> Iterator[None]:
    """All layers train, or evaluate, within.

    Example:
        >>> layer = nn.Dropout().eval()
        >>> with mode(layer, training=True):
        ...     layer.training
        True
        >>> layer.training
        False
    """
    modes = {module: module.training for module in network.modules()}
    network.train(training)
    try:
        yield
    finally:
        for module, before in modes.items():
            module.training = before


@contextmanager
def inference(network: nn.Module) -> Iterator[None]:
    """Evaluation without gradients within."""
    with mode(network, training=False), torch.no_grad():
        yield
