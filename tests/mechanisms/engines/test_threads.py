"""Threads that compute clipped sums at the same time get what each would get alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from mechanisms.clipping import Fixed
from mechanisms.engines import ENGINES, Batch
from mechanisms.units import ClippedUnit

THREADS = 4
UNIT = ClippedUnit(1, 3)


pytestmark = pytest.mark.usefixtures("frequent_switches")


def clipped_sum(engine, network, scale):
    clip = Fixed()
    clip.start(1.0)
    batch = Batch(scale * torch.ones(3, 4), torch.tensor([0, 1, 2]))
    return engine.clipped_sum(network, nn.CrossEntropyLoss(), batch, clip).flat_grad


@pytest.mark.parametrize("name", ENGINES.names())
@pytest.mark.parametrize("shared", ["nothing", "network", "network and engine"])
def test_each_thread_gets_its_own_sum(name, shared):
    networks = [nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)).eval() for _ in range(THREADS)]
    engines = [ENGINES.get(name)(UNIT) for _ in range(THREADS)]
    if shared != "nothing":
        networks = networks[:1] * THREADS
    if shared == "network and engine":
        engines = engines[:1] * THREADS
    scales = range(1, THREADS + 1)
    expected = list(map(clipped_sum, [ENGINES.get("loop")(UNIT)] * THREADS, networks, scales))
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in range(3):
            found = list(pool.map(clipped_sum, engines, networks, scales))
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other)
