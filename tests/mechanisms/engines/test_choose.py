from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mechanisms.clipping import Fixed
from mechanisms.engines import ENGINES, Batch, BookKeepingEngine, choose_engine
from mechanisms.engines.choose import PREFERENCE
from mechanisms.units import ClippedUnit
from monitors.errors import UnsupportedModuleError

EXAMPLE = Batch(torch.randn(2, 4), torch.tensor([0, 1]))


def choose(name, network, **options):
    return choose_engine(name, network, nn.CrossEntropyLoss(), ClippedUnit(1, 8), EXAMPLE, **options)


@pytest.mark.parametrize("name", ENGINES.names())
def test_a_requested_engine_is_returned(name):
    choice = choose(name, nn.Linear(4, 3), physical_batch_size=2)
    assert (choice.engine.name, choice.engine.physical_batch_size) == (name, 2)
    assert "was requested" in choice.reason


def test_the_preference_lists_all_registered_engines():
    assert PREFERENCE[-1] == "loop"
    assert set(PREFERENCE) == set(ENGINES.names())


def test_an_engine_that_does_not_support_the_network_says_why_and_what_to_do():
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    with pytest.raises(UnsupportedModuleError, match=r"'bookkeeping' cannot be used: layer '1' \(BatchNorm1d\)"):
        choose("bookkeeping", network)


def test_if_no_engine_supports_the_network_the_error_lists_all_reasons():
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    with pytest.raises(UnsupportedModuleError, match="not 'bookkeeping' because"):
        choose("auto", network, preference=("bookkeeping",))


def test_an_unknown_name_is_refused_with_a_suggestion():
    with pytest.raises(ValueError, match="did you mean 'vmap'"):
        choose("vmapp", nn.Linear(4, 3))


@pytest.mark.parametrize("name", ENGINES.names())
def test_the_physical_batch_size_can_be_found_from_a_memory_budget(name):
    small, large = (
        choose(name, nn.Linear(4, 3), physical_batch_size="auto", memory_budget=size).engine.physical_batch_size
        for size in (2**14, 2**20)
    )
    assert 1 <= small < large


def test_an_unknown_word_for_the_physical_batch_size_is_refused():
    with pytest.raises(ValueError, match="'auto' or None, got 'automatic'"):
        choose("auto", nn.Linear(4, 3), physical_batch_size="automatic")


def test_options_are_forwarded_and_engines_without_them_are_skipped():
    choice = choose("auto", nn.Linear(4, 3), options={"precision": "bf16"}, preference=("vmap", "bookkeeping"))
    assert choice.engine.precision == "bf16"
    assert "not 'vmap' because it has no option 'precision'" in choice.reason
    with pytest.raises(UnsupportedModuleError, match="it has no option 'precision'"):
        choose("loop", nn.Linear(4, 3), options={"precision": "bf16"})


@pytest.mark.parametrize("name", ["vmap", "loop"])
def test_an_engine_without_an_option_may_be_as_it_asks(name):
    assert choose(name, nn.Linear(4, 3), options={"cuda_graphs": False}).engine.name == name
    with pytest.raises(UnsupportedModuleError, match="it has no option 'timed_plans'"):
        choose(name, nn.Linear(4, 3), options={"cuda_graphs": False, "timed_plans": True})


def test_an_engine_that_takes_any_option_gets_them_all(monkeypatch):
    class Own(BookKeepingEngine):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)

    monkeypatch.setitem(ENGINES._builders, "bookkeeping", Own)
    found = choose("bookkeeping", nn.Linear(4, 3), options={"cuda_graphs": False, "precision": "bf16"}).engine
    assert (type(found), found.cuda_graphs, found.precision) == (Own, False, "bf16")


@pytest.mark.parametrize("name", ENGINES.names())
def test_every_engine_explains_itself(name):
    assert name in choose(name, nn.Linear(4, 3)).engine.explain()


def test_auto_prefers_book_keeping_and_says_why():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 3))
    x, y = torch.randn(6, 1, 12, 12), torch.arange(6) % 3
    choice = choose_engine("auto", network, nn.CrossEntropyLoss(), ClippedUnit(1, 6), Batch(x[:1], y[:1]))
    assert isinstance(choice.engine, BookKeepingEngine)
    assert "bookkeeping" in choice.reason
    clip = Fixed()
    clip.start(1.0)
    choice.engine.clipped_sum(network, nn.CrossEntropyLoss(), Batch(x, y), clip)
    text = choice.engine.explain()
    assert "0 (Conv2d): layer rule" in text
    assert "instantiate" in text


def test_auto_falls_back_and_says_why():
    class Stray(nn.Linear):
        def forward(self, x):
            return F.linear(x, self.weight) @ Stray.other.weight

    network = nn.ModuleList([nn.Linear(3, 3)])
    Stray.other = network[0]
    network.append(Stray(3, 3))
    network.forward = lambda x: network[1](x)
    choice = choose_engine(
        "auto", network, nn.CrossEntropyLoss(), ClippedUnit(1, 4), Batch(torch.randn(2, 3), torch.tensor([0, 1]))
    )
    assert choice.engine.name != "bookkeeping"
    assert "not 'bookkeeping' because" in choice.reason


@pytest.mark.parametrize("name", ENGINES.names())
def test_the_capacity_reaches_the_engine_and_what_it_explains(name):
    engine = choose(name, nn.Linear(4, 3), capacity=40, physical_batch_size=16).engine
    assert (engine.capacity, engine.static_rows) == (40, 16)
    assert "static shapes" in engine.explain()
    assert "16 examples" in engine.explain()
    assert choose(name, nn.Linear(4, 3)).engine.static_rows is None


def test_an_engine_that_would_count_fillers_is_refused(monkeypatch):
    monkeypatch.setattr(ENGINES.get("vmap"), "takes_fillers", False)
    with pytest.raises(UnsupportedModuleError, match="fillers weight 0"):
        choose("vmap", nn.Linear(4, 3), capacity=40)
    assert choose("auto", nn.Linear(4, 3), capacity=40, preference=("vmap", "loop")).engine.name == "loop"
