"""Dropout and the like, drawn from a seed that nobody knows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_SEED_BYTES = 8


@contextmanager
def secret_randomness(device: torch.device) -> Iterator[None]:
    """Torch's generators are seeded by the operating system within, and go on as before afterwards.

    The mask that dropout gives to an example depends on its place in the batch, and so on which others were drawn. As
    long as the masks are secret, they are the same for whoever does not know the batch; with a seed that is known,
    leaving one example out would move the gradients of others in a known way, which no clipping bounds.

    torch's generators are no cipher: this keeps masks from being known, and rests no noise on them.

    Args:
        device: Where the training is; its generator and the CPU's are meant.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(int.from_bytes(os.urandom(_SEED_BYTES), "little"))
        yield
