"""Dropout, augmentation and other randomness, drawn from secret seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dpmodel.data.generators import Generators, secret_seed


@contextmanager
def secret_randomness(device: torch.device, *sources: Any) -> Iterator[Callable[..., None]]:
    """Gives a function that reseeds all generators from the operating system.

    These are the global generators of torch, NumPy and Python, and those that can be reached from ``sources``. After
    the block they continue as before.

    The dropout mask of an example depends on its position in the batch, and so on the other examples drawn. Secret
    masks look the same to anyone who does not know the batch; with a known seed, leaving one example out would change
    the gradients of others in a known way, which no clipping bounds. Call the function before each batch is read, since
    augmentation draws from these generators too, and afterwards, since a data set may have seeded them for its own
    purposes. With ``search=False``, it seeds the generators that it has found before.

    They are not ciphers: this keeps masks and crops secret; the noise does not depend on them.

    Args:
        device: Where the training runs; its generator and the CPU's are reseeded.
        *sources: Data set, ``collate_fn``, network and loss, which may hold further generators.
    """
    on_gpu = device.type == "cuda"
    generators = Generators(*sources)

    def renew(search: bool = True) -> None:
        generators.renew(search=search)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(secret_seed())

    with generators.preserved(), torch.random.fork_rng([device] if on_gpu else []):
        renew()
        yield renew


@dataclass(frozen=True)
class TorchGenerators:
    """Torch's own generators, which draw dropout masks, for example, as part of a training's state.

    Args:
        device: Where the training runs.
        secret: Whether they are seeded secretly; then they have no state to keep.
    """

    device: torch.device
    secret: bool

    def state_dict(self) -> dict[str, Tensor]:
        """State of the generators by device type; empty if they are secret."""
        if self.secret:
            return {}
        on_gpu = self.device.type == "cuda"
        cuda = {"cuda": torch.cuda.get_rng_state(self.device)} if on_gpu else {}
        return {"cpu": torch.get_rng_state(), **cuda}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore ``state_dict``, as far as this training has the devices."""
        if "cpu" in state:
            torch.set_rng_state(state["cpu"])
        if "cuda" in state and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], self.device)
