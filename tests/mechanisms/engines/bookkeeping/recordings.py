"""What tests of recorded passes share: an engine that records on a CPU, a small network, and steps of both."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mechanisms.clipping import CLIP
from mechanisms.engines import Batch, BookKeepingEngine
from mechanisms.engines.bookkeeping.graphs import PassGraphs
from mechanisms.units import ClippedUnit

UNIT, LOSS = ClippedUnit(1, 4), nn.CrossEntropyLoss()


def rerun():
    """Stands in for CUDA graphs on a CPU: a replay runs the recorded function again."""
    return lambda function: function


def recording(**options):
    engine = BookKeepingEngine(UNIT, **options)
    engine.graphs = PassGraphs(record=rerun)
    return engine


def images(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Batch(torch.randn(size, 1, 6, 6, generator=generator), torch.randint(3, (size,), generator=generator))


def network_of(*middle):
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), *middle, nn.Flatten(), nn.Linear(64, 3))


def memory_of(network):
    return torch.zeros(sum(value.numel() for value in network.parameters()))


def started(name="Fixed", bound=0.5):
    clip = CLIP.create(name)
    clip.start(bound)
    return clip


def steps(engine, network, count, *, size=4, clip=None, between=None, loss_fn=LOSS, total=None):
    """Sums of ``count`` steps on different batches, into the same vector as in training."""
    clip, total, found = clip or started(), memory_of(network) if total is None else total, []
    for step in range(count):
        if between:
            between(step)
        sizes = size(step) if callable(size) else size
        summed = engine.clipped_sum(network, loss_fn, images(sizes, step), clip, total)
        found.append((summed.flat_grad.clone(), summed.norms, summed.loss, summed.rejected))
    return found


def require_equal(found, expected):
    for (grad, norms, loss, rejected), (grad_2, norms_2, loss_2, rejected_2) in zip(found, expected, strict=True):
        torch.testing.assert_close(grad, grad_2, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(norms, norms_2, rtol=1e-5, atol=1e-6)
        assert loss == pytest.approx(loss_2, rel=1e-5, nan_ok=True)
        assert rejected == rejected_2
