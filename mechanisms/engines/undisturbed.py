"""Trial passes that leave no trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def undisturbed(network: nn.Module) -> Iterator[None]:
    """Whatever happens inside, modes, buffers and the random state of ``network`` are as before afterwards.

    A buffer that nothing wrote to is not written to here either: its version tells so to whoever watches it.
    """
    modes = [(module, module.training) for module in network.modules()]
    buffers = [(value, value.clone(), value._version) for value in network.buffers()]
    devices = {value.device for value in network.parameters() if value.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for value, before, version in buffers:
                if value._version != version:
                    value.copy_(before)
