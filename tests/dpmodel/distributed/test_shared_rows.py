"""The parts of the ranks make up the batch of one process."""

import numpy as np
import pytest

from dpmodel.distributed.ranks import Ranks
from dpmodel.distributed.shared_rows import SharedRows
from mechanisms import ClippedUnit, PoissonSampler, ShuffleSampler


class Part(Ranks):
    def __init__(self, rank, size):
        self.rank, self.size = rank, size


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("kind", [PoissonSampler, ShuffleSampler])
def test_every_drawn_row_is_on_one_rank(kind, size):
    whole = SharedRows(kind(50, 10, seed=1), ClippedUnit(1, 10))
    parts = [SharedRows(kind(50, 10, seed=1), ClippedUnit(1, 10), Part(rank, size)) for rank in range(size)]
    for step in range(5):
        rows = [part.rows(step) for part in parts]
        assert sorted(np.concatenate(rows)) == sorted(whole.rows(step))
        assert max(map(len, rows)) - min(map(len, rows)) <= 1


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_a_group_is_never_split(size):
    unit = ClippedUnit(2, 5)
    whole = SharedRows(PoissonSampler(50, 10, seed=1), unit)
    parts = [SharedRows(PoissonSampler(50, 10, seed=1), unit, Part(rank, size)) for rank in range(size)]
    assert sum(part.units for part in parts) == 5
    for step in range(5):
        drawn = {}
        for rank, part in enumerate(parts):
            rows, ids = part.rows(step), part.take()
            assert not len(ids) or ids.max() < part.units
            drawn |= {row: rank + size * int(group) for row, group in zip(rows.tolist(), ids, strict=True)}
        rows, ids = whole.rows(step), whole.take()
        assert drawn == dict(zip(rows.tolist(), ids.tolist(), strict=True))


@pytest.mark.parametrize("unit", [ClippedUnit(1, 100), ClippedUnit(4, 25)])
@pytest.mark.parametrize("kind", [PoissonSampler, ShuffleSampler])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_step_hardly_ever_exceeds_the_capacity_of_a_rank(kind, unit, size):
    for rank in range(size):
        part = SharedRows(kind(1000, 100, seed=1), unit, Part(rank, size))
        most = max(len(part.rows(step)) for step in range(10))
        assert most <= part.capacity <= 100 / size + 8 * 10


def test_the_capacity_is_exact_if_batches_are():
    assert SharedRows(ShuffleSampler(50, 10), ClippedUnit(1, 10)).capacity == 10
    assert SharedRows(PoissonSampler(10, 10), ClippedUnit(1, 10)).capacity == 10
