"""Spectral normalisation: moves its power iterations from the passes over data to between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm

_Parametrized: Any = parametrizations._SpectralNorm


class PowerIterations:
    """Takes the power iterations of ``torch.nn.utils.spectral_norm`` and its parametrization out of forward passes.

    In plain training, each forward pass updates the estimates of the singular vectors, which are buffers. They depend
    only on the weights, but the number of updates would reveal how many examples were drawn, and the gradient of an
    example would depend on its place among the others. While held, passes do not change the estimates; ``advance``
    updates them once per step. They are then a function of the released weights and the number of steps:
    post-processing.

    Args:
        network: The network whose layers are held inside ``held``.

    Example:
        >>> layer = parametrizations.spectral_norm(nn.Linear(3, 2))
        >>> iterations, before = PowerIterations(layer), layer.parametrizations.weight[0]._u.clone()
        >>> with iterations.held():
        ...     _ = layer(torch.ones(1, 3))
        ...     torch.equal(layer.parametrizations.weight[0]._u, before)
        True
    """

    def __init__(self, network: nn.Module) -> None:
        #: The object with the number of iterations, that number, and the call that runs them.
        self._of: list[tuple[Any, int, Callable[[], object]]] = []
        for module in network.modules():
            if isinstance(module, ParametrizationList):
                inner: list[Any] = [part for part in module if type(part) is _Parametrized]
                self._of += [(part, int(part.n_power_iterations), partial(_evaluate, module, part)) for part in inner]
            for hook in module._forward_pre_hooks.values():
                if type(hook) is SpectralNorm:
                    compute = partial(hook.compute_weight, module, do_power_iteration=True)
                    self._of.append((hook, hook.n_power_iterations, compute))

    def __bool__(self) -> bool:
        return bool(self._of)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Forward passes inside run no power iterations."""
        for holder, _, _ in self._of:
            holder.n_power_iterations = 0
        try:
            yield
        finally:
            for holder, count, _ in self._of:
                holder.n_power_iterations = count

    def advance(self) -> None:
        """Run the iterations of one forward pass."""
        with torch.no_grad():
            for holder, count, compute in self._of:
                held, holder.n_power_iterations = holder.n_power_iterations, count
                try:
                    compute()
                finally:
                    holder.n_power_iterations = held


def _evaluate(chain: ParametrizationList, part: nn.Module) -> None:
    mode, part.training = part.training, True
    try:
        chain()
    finally:
        part.training = mode
