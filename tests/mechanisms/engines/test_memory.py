from __future__ import annotations

import pytest
import torch
from torch import nn

from mechanisms.engines import ENGINES, Batch, BookKeepingEngine, memory
from mechanisms.engines.memory import auto_physical_batch_size, free_memory
from mechanisms.units import ClippedUnit
from monitors.errors import ConfigError

NETWORK = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 26 * 26, 10))
EXAMPLE = Batch(torch.randn(1, 1, 28, 28), torch.zeros(1, dtype=torch.long))


@pytest.mark.sample(6)
@pytest.mark.parametrize("name", ENGINES.names())
@pytest.mark.parametrize("group", [1, 4])
def test_a_larger_budget_allows_more_examples_and_whole_groups(name, group):
    engine = ENGINES.create(name, ClippedUnit(group, 8))
    small, large = (
        auto_physical_batch_size(engine, NETWORK, nn.CrossEntropyLoss(), EXAMPLE, budget_bytes=mib * 2**20)
        for mib in (64, 256)
    )
    assert small % group == large % group == 0
    assert 1 <= small < large
    assert engine.physical_batch_size is None


def test_the_memory_of_an_example_is_between_its_activations_and_a_few_times_that():
    engine = BookKeepingEngine(ClippedUnit(1, 8))
    size = auto_physical_batch_size(engine, NETWORK, nn.CrossEntropyLoss(), EXAMPLE, budget_bytes=2**28)
    activations = 4 * 2 * 8 * 26 * 26  # the convolution's output and the activation's, float32
    assert 0.9 * activations <= 2**28 / size <= 4 * activations


def test_a_budget_too_small_for_one_unit_still_gives_one():
    engine = BookKeepingEngine(ClippedUnit(4, 8))
    assert auto_physical_batch_size(engine, NETWORK, nn.CrossEntropyLoss(), EXAMPLE, budget_bytes=1) == 4


def test_a_budget_must_be_positive():
    with pytest.raises(ValueError, match="budget_bytes must be a positive"):
        auto_physical_batch_size(
            BookKeepingEngine(ClippedUnit(1, 8)), NETWORK, nn.CrossEntropyLoss(), EXAMPLE, budget_bytes=0
        )


def test_the_processor_has_free_memory():
    assert free_memory(torch.device("cpu")) > 2**20


def test_free_memory_respects_the_limit_of_a_container(tmp_path, monkeypatch):
    limit, used = tmp_path / "max", tmp_path / "current"
    monkeypatch.setattr(memory, "_GROUP_FILES", ((str(tmp_path / "none"), str(used)), (str(limit), str(used))))
    limit.write_text("3000000\n")
    used.write_text("1000000\n")
    assert free_memory(torch.device("cpu")) == 2_000_000
    limit.write_text("max\n")
    assert free_memory(torch.device("cpu")) > 2_000_000


def test_a_system_that_does_not_report_free_memory_asks_for_a_number(monkeypatch):
    def unknown(name):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(memory.os, "sysconf", unknown)
    with pytest.raises(ConfigError, match="set physical_batch_size to a number"):
        memory._free_pages()
