"""Dropout and the like, drawn from a seed that nobody knows."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

_SEED_BYTES = 8


@contextmanager
def secret_randomness(device: torch.device) -> Iterator[Callable[[], None]]:
    """Gives a function that seeds torch's generators anew from the operating system; they go on as before afterwards.

    The mask that dropout gives to an example depends on its place in the batch, and so on which others were drawn. As
    long as the masks are secret, they are the same for whoever does not know the batch; with a seed that is known,
    leaving one example out would move the gradients of others in a known way, which no clipping bounds. The function is
    called before each pass: a data set may have seeded torch for its own purposes.

    torch's generators are no cipher: this keeps masks from being known, and rests no noise on them.

    Args:
        device: Where the training is; its generator and the CPU's are meant.
    """
    on_gpu = device.type == "cuda"

    def renew() -> None:
        torch.default_generator.manual_seed(_seed())
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(_seed())

    with torch.random.fork_rng([device] if on_gpu else []):
        renew()
        yield renew


def _seed() -> int:
    return int.from_bytes(os.urandom(_SEED_BYTES), "little")
