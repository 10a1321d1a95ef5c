"""Views: made for each example alone, and never mixed up when rows are selected, cut or filled."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mechanisms.engines import ENGINES, Batch
from mechanisms.engines.choose import choose_engine
from mechanisms.engines.chunks import chunks, static_chunks
from mechanisms.engines.loop import LoopEngine
from mechanisms.engines.memory import auto_physical_batch_size
from mechanisms.engines.state.python_state import MOST_OBJECTS
from mechanisms.engines.views import Views
from mechanisms.units import ClippedUnit
from monitors.errors import UnsupportedModuleError


def shifted(copies, numbers):
    return copies + numbers.view(-1, *[1] * (copies.dim() - 1))


def batch(size=5, multiplicity=3, grouped=False):
    ids = torch.arange(size) % 2 if grouped else None
    numbers = torch.arange(float(multiplicity)).view(1, -1, 1) + 10.0 * torch.arange(size).view(-1, 1, 1)
    x = 100.0 * torch.arange(float(size)).unsqueeze(1)
    return Batch(x, torch.arange(size), ids, 2 if grouped else None, views=Views(numbers, shifted))


def require_own_views(made):
    """Example r has the views 110 r, 110 r + 1, 110 r + 2."""
    for row, label in enumerate(made.y.tolist()):
        assert made.x[row].flatten().tolist() == [110.0 * label + number for number in range(made.multiplicity)]


def test_a_view_is_made_of_its_own_example():
    require_own_views(batch().made())
    rows = torch.tensor([3, 0, 3])
    require_own_views(batch().select(rows).made())
    require_own_views(batch().made().select(rows))


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("physical", [None, 1, 2])
def test_chunks_keep_the_views_of_an_example_together(physical, grouped):
    unit, whole = ClippedUnit(2 if grouped else 1, 2), batch(grouped=grouped)
    seen = []
    for cut in (chunks(whole, unit, physical), static_chunks(whole, unit, physical, 4)):
        for part in cut:
            made = part.made()
            require_own_views(made)
            seen.append(made.size)
            assert made.x.shape[1] == 3
    assert sum(seen) >= 10


def test_rows_and_targets_are_those_that_the_network_takes():
    made = batch(2).made()
    assert made.rows.flatten().tolist() == [0.0, 1.0, 2.0, 110.0, 111.0, 112.0]
    assert made.targets_of(made.y).tolist() == [0, 0, 0, 1, 1, 1]
    assert made.mean_over_views(torch.tensor([1.0, 2.0, 3.0, 7.0, 7.0, 7.0])).tolist() == [2.0, 7.0]
    plain = Batch(made.x, made.y)
    assert plain.rows is made.x
    assert plain.targets_of(made.y) is made.y


def test_no_examples_have_no_views():
    assert batch(0).made().x.shape == (0, 3, 1)


class Remembers:
    def __init__(self):
        self.total = torch.zeros(())

    def __call__(self, copies, numbers):
        self.total = self.total + copies.sum()
        return copies + self.total


def test_state_is_restored_after_the_views_are_made():
    augment, given = Remembers(), batch()
    views = Views(given.views.numbers, augment)
    first, second = (views.of(given.x) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(augment.total, torch.zeros(()))


def test_code_that_makes_views_cannot_see_other_examples_or_values():
    given = batch()
    alone = Views(given.views.numbers, lambda copies, numbers: copies - copies.mean(0)).of(given.x)
    assert torch.equal(alone, torch.zeros(5, 3, 1))  # the mean is that of an example's own copies
    for code in (
        lambda copies, numbers: copies if float(copies.sum()) > 1 else -copies,
        lambda copies, numbers: copies[copies > 0],
    ):
        with pytest.raises(UnsupportedModuleError):
            Views(given.views.numbers, code).of(given.x)


def test_more_state_than_can_be_restored_is_refused():
    augment = Remembers()
    augment.seen = [[] for _ in range(MOST_OBJECTS + 1)]
    with pytest.raises(UnsupportedModuleError, match="keeps state that cannot be restored"):
        Views(torch.zeros(5, 3, 1), augment).of(batch().x)


def test_engines_are_compared_on_views():
    made = batch(2).made()
    for name in ("auto", *ENGINES.names()):
        unit = ClippedUnit(1, 2)
        assert choose_engine(name, nn.Linear(1, 5), nn.CrossEntropyLoss(), unit, made).engine is not None


class Unaware(LoopEngine):
    name = "unaware"
    takes_views = False


def test_an_engine_that_does_not_average_is_not_chosen(monkeypatch):
    monkeypatch.setitem(ENGINES._builders, "unaware", Unaware)
    with pytest.raises(UnsupportedModuleError, match="does not average over the views"):
        choose_engine("unaware", nn.Linear(1, 5), nn.CrossEntropyLoss(), ClippedUnit(1, 2), batch(2).made())
    plain = Batch(batch(2).x, batch(2).y)
    assert choose_engine("unaware", nn.Linear(1, 5), nn.CrossEntropyLoss(), ClippedUnit(1, 2), plain)


@pytest.mark.parametrize("engine_name", ENGINES.names())
def test_memory_grows_with_the_number_of_views(engine_name):
    network = nn.Sequential(nn.Linear(64, 200), nn.Tanh(), nn.Linear(200, 2))
    x, y, sizes = torch.zeros(1, 64), torch.zeros(1, dtype=torch.int64), []
    for multiplicity in (2, 32):
        made = Batch(x, y, views=Views(torch.zeros(1, multiplicity, 1), shifted)).made()
        engine = ENGINES.create(engine_name, ClippedUnit(1, 64))
        loss = nn.CrossEntropyLoss()
        sizes.append(auto_physical_batch_size(engine, network, loss, made, budget_bytes=2**26))
    assert sizes[0] > sizes[1] >= 1 or engine_name == "loop"
