from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from mechanisms.clipping import Fixed
from mechanisms.engines import Batch, BookKeepingEngine
from mechanisms.engines.vmap import VmapEngine
from mechanisms.units import ClippedUnit


class Scaled(nn.Module):
    """Scales by a number drawn once for all examples of a pass."""

    def __init__(self, draw):
        super().__init__()
        self.layer, self.draw = nn.Linear(4, 3), draw
        self.own = random.Random(1), np.random.default_rng(1)

    def forward(self, x):
        return self.layer(x) * self.draw(self)


class Dropped(nn.Module):
    """Skips a layer by a random number of torch, like layerdrop in transformers."""

    def __init__(self):
        super().__init__()
        self.first, self.other, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        h = self.first(x)
        return self.last(h if torch.rand(()) < 0.5 else self.other(h))


NETWORKS = {
    "Python": lambda: Scaled(lambda network: random.random()),
    "NumPy": lambda: Scaled(lambda network: np.random.random()),
    "a generator of Python that the network keeps": lambda: Scaled(lambda network: network.own[0].random()),
    "a generator of NumPy that the network keeps": lambda: Scaled(lambda network: network.own[1].random()),
    "torch": Dropped,
}


#: State that a trusted network keeps is not checked.
CASES = [(of, "verified") for of in NETWORKS] + [(of, "trust") for of in NETWORKS if "keeps" not in of]


@pytest.mark.sample(8)
@pytest.mark.parametrize(("of", "isolation"), CASES)
def test_passes_of_a_step_share_numbers_that_are_drawn_once_for_all_examples(of, isolation):
    engine_type = BookKeepingEngine if of == "torch" else VmapEngine
    engine, clip = engine_type(ClippedUnit(1, 16), physical_batch_size=2), Fixed()
    engine.boundary.isolation = isolation
    clip.start(1.0)
    network = NETWORKS[of]()
    batch = Batch(torch.ones(16, 4), torch.zeros(16, dtype=torch.long))
    steps = [engine.clipped_sum(network, nn.CrossEntropyLoss(), batch, clip).norms for _ in range(12)]
    assert all(torch.equal(norms, norms[:1].expand_as(norms)) for norms in steps)
    assert len({float(norms[0]) for norms in steps}) > 1
