"""Initial weights by name."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from monitors import checks
from monitors.registry import Registry

INITIALIZERS: Registry[Callable[..., None]] = Registry("initialisation")


@INITIALIZERS.register("torch")
def torch_default(network: nn.Module) -> None:
    """Keep the weights that torch's constructors drew."""
    del network


@INITIALIZERS.register("truncated_normal")
@torch.no_grad()
def truncated_normal(network: nn.Module, sigma: float = 0.05) -> None:
    """MindSpore's ``TruncatedNormal(sigma)``: standard deviation ``sigma``, truncated at two standard deviations.

    Draws the weights of convolutions and dense layers and, as in the tutorial's script, the biases of dense layers.
    Biases of convolutions are set to zero.
    """
    checks.positive(sigma=sigma)
    for layer in _weighted(network):
        _draw(layer.weight, sigma)
        if layer.bias is None:
            continue
        if isinstance(layer, nn.Linear):
            _draw(layer.bias, sigma)
        else:
            layer.bias.zero_()


@INITIALIZERS.register("xavier_uniform")
def xavier_uniform(network: nn.Module, gain: float = 1.0) -> None:
    """Glorot's uniform weights, zero biases."""
    _fill(network, lambda weight: nn.init.xavier_uniform_(weight, gain=gain))


@INITIALIZERS.register("kaiming_normal")
def kaiming_normal(network: nn.Module) -> None:
    """He's normal weights for ReLU, zero biases."""
    _fill(network, lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu"))


@INITIALIZERS.register("orthogonal")
def orthogonal(network: nn.Module, gain: float = 1.0) -> None:
    """Orthogonal weights, zero biases."""
    _fill(network, lambda weight: nn.init.orthogonal_(weight, gain=gain))


@contextlib.contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Use ``seed`` for the weights drawn inside the block, and restore torch's global generator afterwards.

    With ``seed=None`` the block uses the global generator. Initial weights are public and need no secure generator.
    """
    if seed is None:
        yield
        return
    checks.non_negative_int(seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(seed))
        yield


def _draw(tensor: torch.Tensor, sigma: float) -> None:
    nn.init.trunc_normal_(tensor, std=sigma, a=-2 * sigma, b=2 * sigma)


@torch.no_grad()
def _fill(network: nn.Module, draw: Callable[[torch.Tensor], Any]) -> None:
    for layer in _weighted(network):
        draw(layer.weight)
        if layer.bias is not None:
            layer.bias.zero_()


def _weighted(network: nn.Module) -> Iterator[nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d]:
    for layer in network.modules():
        if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            yield layer
