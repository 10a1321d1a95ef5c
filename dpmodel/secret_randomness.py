"""Dropout, augmentation and the like, drawn from seeds that nobody knows."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

_SEED_BYTES = 8
_NUMPY_SEED_BITS = 32


@contextmanager
def secret_randomness(device: torch.device) -> Iterator[Callable[[], None]]:
    """Gives a function that seeds the global generators of torch, NumPy and Python anew from the operating system.

    They go on as before afterwards.

    The mask that dropout gives to an example depends on its place in the batch, and so on which others were drawn. As
    long as the masks are secret, they are the same for whoever does not know the batch; with a seed that is known,
    leaving one example out would move the gradients of others in a known way, which no clipping bounds. The function is
    called before each batch is read: augmentation draws from them too, and a data set may have seeded them for its own
    purposes. A generator that a data set keeps for itself is out of reach.

    They are no ciphers: this keeps masks and crops from being known, and rests no noise on them.

    Args:
        device: Where the training is; its generator and the CPU's are meant.
    """
    on_gpu = device.type == "cuda"

    def renew() -> None:
        random.seed(_seed())
        np.random.seed(_seed() % 2**_NUMPY_SEED_BITS)
        torch.default_generator.manual_seed(_seed())
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(_seed())

    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([device] if on_gpu else []):
            renew()
            yield renew
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)


def _seed() -> int:
    return int.from_bytes(os.urandom(_SEED_BYTES), "little")
