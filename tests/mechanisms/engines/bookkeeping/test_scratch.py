from __future__ import annotations

import torch
from torch import nn

from dpmodel import Callback
from mechanisms.engines import ENGINES, Batch, BookKeepingEngine
from mechanisms.engines.bookkeeping.scratch import Scratch
from mechanisms.units import ClippedUnit

LENGTH, WIDTH = 24, 16


def encoder():
    """Sequences so long that each linear layer instantiates, two of them in one attention module."""
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 2 * WIDTH, dropout=0.0, batch_first=True)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(LENGTH * WIDTH, 3))


def sequences(size):
    return torch.randn(size, LENGTH, WIDTH), torch.arange(size) % 3


def test_arrays_for_one_use_share_memory_and_those_for_two_do_not():
    scratch, like = Scratch(), torch.zeros(0)
    rows, others = scratch.empty("rows", (3, 4), like), scratch.empty("others", (3, 4), like)
    assert rows.shape == (3, 4)
    assert rows.data_ptr() != others.data_ptr()
    assert scratch.empty("rows", (2, 5), like).data_ptr() == rows.data_ptr()
    assert scratch.empty("rows", (5, 5), like).shape == (5, 5)
    assert scratch.empty("rows", (3, 4), like.double()).dtype == torch.float64
    assert scratch.held_bytes == 4 * 25 + 8 * 12 + 4 * 12


def test_reused_memory_does_not_change_the_sum(assert_exact):
    x, y = sequences(7)
    assert_exact(encoder(), x, y, physical_batch_size=2)
    assert_exact(encoder(), x, y)


def test_steps_of_different_sizes_do_not_affect_each_other(clip):
    network = encoder()
    engine = BookKeepingEngine(ClippedUnit(1, 8))
    for size in (8, 3, 11, 1, 8):
        x, y = sequences(size)
        if size == 3:
            x[1] = torch.nan  # must not reach the next step through reused memory
        found = engine.clipped_sum(network, nn.CrossEntropyLoss(), Batch(x, y), clip)
        fresh = BookKeepingEngine(ClippedUnit(1, 8)).clipped_sum(network, nn.CrossEntropyLoss(), Batch(x, y), clip)
        assert torch.equal(found.flat_grad, fresh.flat_grad)


def test_an_engine_holds_the_gradients_of_one_chunk_until_release(clip):
    network, (x, y) = encoder(), sequences(8)
    engine = BookKeepingEngine(ClippedUnit(1, 8), physical_batch_size=4)
    engine.clipped_sum(network, nn.CrossEntropyLoss(), Batch(x, y), clip)
    instantiated = sum(p.numel() for name, p in network.named_parameters() if p.dim() == 2 and name[0] == "0")
    assert engine.held_bytes == 4 * 4 * instantiated
    engine.release()
    assert engine.held_bytes == 0


def test_engines_that_keep_nothing_hold_nothing():
    for name in ENGINES.names():
        engine = ENGINES.create(name, ClippedUnit(1, 8))
        engine.release()
        assert engine.held_bytes == 0


def test_per_example_gradients_do_not_outlive_training(make_model):
    held = []

    class Watch(Callback):
        def on_train_step_end(self, run):
            held.append(model._choice[0].engine.held_bytes)

    x, y = sequences(32)
    model = make_model(encoder(), engine="bookkeeping")
    model.fit(torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 8), callbacks=[Watch()])
    assert max(held) > 0
    assert model._choice[0].engine.held_bytes == 0
