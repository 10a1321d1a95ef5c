"""Clip factors are recorded with the pass if all that they depend on is known, and anew when it changes."""

from __future__ import annotations

import pytest
import torch

from mechanisms.adaptive_clipping import QuantileClip
from mechanisms.clipping import CLIP, Automatic, Fixed, PerLayer
from mechanisms.engines import BookKeepingEngine
from mechanisms.engines.bookkeeping.graphs import PassGraphs
from monitors.errors import UnprotectedUpdateError
from tests.kernel_tape import on_tape
from tests.mechanisms.engines.bookkeeping.recordings import (
    UNIT,
    memory_of,
    network_of,
    recording,
    require_equal,
    started,
    steps,
)

ONE = torch.ones(1, 1)


@pytest.fixture
def taped(monkeypatch):
    """An engine whose passes are recorded as operators: numbers of Python are constants of a recording."""
    for place in ("engine", "layers.cancellation"):
        monkeypatch.setattr(f"mechanisms.engines.bookkeeping.{place}.costs_a_wait", lambda value: True)
    # The tape is a mode, and holds the tensors of a pass.
    monkeypatch.setattr("mechanisms.engines.base.require_unwatched", lambda: None)
    monkeypatch.setattr("mechanisms.engines.state.escapes.Escapes.count", lambda self: 0)
    tapes = []

    def on_counted_tapes():
        record = on_tape()

        def counted(function):
            tapes.append(function)
            return record(function)

        return counted

    engine = recording()
    engine.graphs = PassGraphs(record=on_counted_tapes)
    return engine, tapes


class Decaying(Fixed):
    """A bound that changes after every step."""

    def update(self, norms, unit, step):
        self.start(0.9 * self.norm_bound)


class Squared(Automatic):
    """Factors of its own, for which ``Automatic`` cannot speak."""

    power = 2.0

    def factors(self, norms):
        return super().factors(norms) ** self.power


class Stated(Squared):
    """Factors of its own, and what they depend on."""

    def constants(self, blocks):
        return *super().constants(blocks), self.power


@pytest.mark.parametrize(
    ("clip", "parts"),
    [(CLIP.get(name), 1) for name in CLIP.names() if name != "Gaussian"]
    + [(QuantileClip, 2), (Decaying, 2), (Squared, 2), (Stated, 1)],
)
def test_factors_are_recorded_with_the_pass_if_their_constants_are_known(taped, clip, parts):
    (engine, tapes), network = taped, network_of()

    def train(engine):
        mechanism = clip(seed=3) if clip is QuantileClip else clip()
        mechanism.start(0.5)
        return steps(engine, network, 8, clip=mechanism, between=lambda step: mechanism.update(ONE, UNIT, step))

    require_equal(train(engine), train(BookKeepingEngine(UNIT)))
    assert engine.graphs.recorded == 1, engine.graphs.refusal
    assert len(tapes) == parts


@pytest.mark.parametrize("change", [lambda clip: clip.start(0.05), lambda clip: setattr(clip, "power", 3.0)])
def test_changed_constants_end_the_recording(taped, change):
    (engine, _), network = taped, network_of()

    def train(engine):
        clip, total = Stated(), memory_of(network)
        clip.start(0.5)
        found = steps(engine, network, 4, clip=clip, total=total)
        change(clip)
        return found + steps(engine, network, 4, clip=clip, total=total)

    require_equal(train(engine), train(BookKeepingEngine(UNIT)))
    assert engine.graphs.recorded == 2, engine.graphs.refusal


class Halved(Fixed):
    """Factors of its own with the constants of ``Fixed``."""

    def factors(self, norms):
        return super().factors(norms) / 2

    def constants(self, blocks):
        return super().constants(blocks)


def test_another_mechanism_with_the_same_constants_ends_the_recording(taped):
    (engine, _), network = taped, network_of()

    def train(engine):
        total, found = memory_of(network), []
        for kind in (Fixed, Halved, Fixed):
            clip = kind()
            clip.start(0.1)
            found += steps(engine, network, 4, clip=clip, total=total)
        return found

    require_equal(train(engine), train(BookKeepingEngine(UNIT)))
    assert engine.graphs.recorded == 2, engine.graphs.refusal


def test_factors_whose_code_was_replaced_are_not_recorded(taped, monkeypatch):
    (engine, tapes), network = taped, network_of()
    monkeypatch.setattr(Fixed, "factors", lambda self, norms: torch.full_like(norms, 0.01))
    require_equal(steps(engine, network, 6), steps(BookKeepingEngine(UNIT), network, 6))
    assert len(tapes) == 2


def test_another_precision_ends_the_recording(taped):
    (engine, _), network = taped, network_of()
    total = memory_of(network)
    steps(engine, network, 4, total=total)
    engine.precision = "bf16"
    (bf16, *_), (fp32, *_) = (steps(each, network, 1, total=total)[0] for each in (engine, BookKeepingEngine(UNIT)))
    assert not torch.allclose(bf16, fp32, rtol=1e-4, atol=1e-5)


def test_factors_that_were_exchanged_are_not_recorded(taped):
    (engine, tapes), network, clip = taped, network_of(), started()
    clip.factors = lambda norms: torch.full_like(norms, 0.01)
    require_equal(steps(engine, network, 6, clip=clip), steps(BookKeepingEngine(UNIT), network, 6, clip=clip))
    assert len(tapes) == 2


def test_bounds_of_blocks_are_checked_before_a_replay(taped):
    class Growing(PerLayer):
        growth = 1.0

        def block_bounds(self, blocks):
            return [self.growth * bound for bound in super().block_bounds(blocks)]

    (engine, _), network, clip = taped, network_of(), Growing()
    clip.start(0.5)
    total = memory_of(network)
    steps(engine, network, 5, clip=clip, total=total)
    clip.growth = 2.0
    with pytest.raises(UnprotectedUpdateError, match="root sum of squares"):
        steps(engine, network, 1, clip=clip, total=total)


def test_fillers_of_a_recorded_pass_are_those_of_its_chunk(taped):
    (engine, tapes), plain, network = taped, BookKeepingEngine(UNIT), network_of()
    engine.capacity = 5
    sizes = [4, 12, 1, 5, 0, 7]
    require_equal(steps(engine, network, 6, size=sizes.__getitem__), steps(plain, network, 6, size=sizes.__getitem__))
    assert len(tapes) == engine.graphs.recorded == 1
