"""Compares the clipped sum of an engine with that of the one-example loop."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mechanisms.clipping import CLIP
from mechanisms.engines import Batch, BookKeepingEngine, LoopEngine
from mechanisms.engines.batch import map_tensors
from mechanisms.engines.bookkeeping.layers.cancellation import exact_norms
from mechanisms.units import ClippedUnit


def clip_of(name="Fixed", bound=0.5):
    clip = CLIP.create(name)
    clip.start(bound)
    return clip


def close(found, expected, relative):
    scale = expected.abs().max().clamp(min=1e-30)
    return float((found - expected).abs().max() / scale) <= relative


def exact_sum(unit, network, loss_fn, batch, clip):
    """The one-example loop in float64, so that only the engine rounds."""
    wide = copy.deepcopy(network).double()
    loss_fn = copy.deepcopy(loss_fn).double() if isinstance(loss_fn, nn.Module) else loss_fn
    x, y = (map_tensors(lambda t: t.double() if t.is_floating_point() else t, v) for v in (batch.x, batch.y))
    return LoopEngine(unit).clipped_sum(wide, loss_fn, Batch(x, y, batch.group_ids, batch.units), clip)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Use one thread: tiny tensors gain nothing from more, and lose much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def assert_exact():
    """Assert that book-keeping gives the loop's norms (per layer) and clipped sum."""

    def check(network, x, y, loss_fn=None, group_ids=None, units=None, relative=None, **options):
        dtype = next(network.parameters()).dtype
        relative = relative or (1e-10 if dtype == torch.float64 else 5e-5)  # small norms amplify rounding
        unit = ClippedUnit(1 if group_ids is None else 2, units or len(y))
        batch, loss_fn = Batch(x, y, group_ids, units), loss_fn or nn.CrossEntropyLoss()
        for name in ("Fixed", "PerLayer"):
            expected = exact_sum(unit, network, loss_fn, batch, clip_of(name))
            with exact_norms():  # terms of random numbers may cancel so far that norms are raised
                found = BookKeepingEngine(unit, **options).clipped_sum(network, loss_fn, batch, clip_of(name))
            assert close(found.norms, expected.norms, relative), (name, found.norms, expected.norms)
            assert close(found.flat_grad, expected.flat_grad, relative), name

    return check


@pytest.fixture
def clip():
    """A fixed bound of 0.5."""
    return clip_of()
