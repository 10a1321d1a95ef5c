from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mechanisms.engines import Batch
from mechanisms.engines.chunks import chunks, static_chunks
from mechanisms.units import ClippedUnit


@given(size=st.integers(0, 400), limit=st.integers(1, 300))
def test_chunks_are_as_few_as_possible_and_of_similar_size(size, limit):
    sizes = [part.size for part in chunks(Batch(torch.arange(size), torch.arange(size)), ClippedUnit(1, 4), limit)]
    assert len(sizes) <= -(-size // limit)
    assert all(part <= limit for part in sizes)
    assert len(set(sizes[:-1])) <= 1
    assert sum(sizes) == size
    assert not sizes or sizes[0] - sizes[-1] < len(sizes)


@pytest.mark.parametrize("limit", [None, 1, 2, 3, 100])
@pytest.mark.parametrize("size", [0, 1, 7])
def test_chunks_hold_every_unit_exactly_once(limit, size):
    single = list(chunks(Batch(torch.arange(size), torch.arange(size)), ClippedUnit(1, 4), limit))
    assert torch.cat([torch.zeros(0), *(part.x for part in single)]).tolist() == list(range(size))
    assert all(part.size <= (limit or size) for part in single)
    ids = torch.randint(0, 5, (size,))
    grouped = list(chunks(Batch(torch.arange(size), torch.arange(size), ids, 5), ClippedUnit(2, 5), limit))
    assert sum(part.num_units for part in grouped) == 5
    first = 0
    for part in grouped:
        assert torch.equal(ids[part.x], part.group_ids + first)
        first += part.num_units
    assert sum(part.size for part in grouped) == size


@given(size=st.integers(0, 60), capacity=st.integers(1, 40), physical=st.one_of(st.none(), st.integers(1, 50)))
def test_static_chunks_hold_every_example_in_order_and_then_fillers(size, capacity, physical):
    rows = min(physical or capacity, capacity)
    parts = list(static_chunks(Batch(torch.arange(size), torch.arange(size)), ClippedUnit(1, 4), physical, capacity))
    assert [part.size for part in parts] == [rows] * -(-size // rows)
    assert [row for part in parts for row in part.x[part.real].tolist()] == list(range(size))
    for part in parts:
        assert part.real.tolist() == [True] * (rows - part.fillers) + [False] * part.fillers
        assert set(part.x[~part.real].tolist()) <= {int(part.x[0])}


@given(
    ids=st.lists(st.integers(0, 4), max_size=30),
    capacity=st.integers(1, 40),
    physical=st.one_of(st.none(), st.integers(1, 50)),
)
def test_static_chunks_hold_every_group_whole(ids, capacity, physical):
    ids, rows = torch.tensor(ids, dtype=torch.long), min(physical or capacity, capacity)
    batch = Batch(torch.arange(len(ids)), torch.arange(len(ids)), ids, 5)
    first, seen = 0, []
    for part in static_chunks(batch, ClippedUnit(2, 5), physical, capacity):
        units = part.num_units - part.fillers
        if part.size:
            of_row = part.real[part.group_ids]
            assert torch.equal(ids[part.x[of_row]], part.group_ids[of_row] + first)
            assert part.real.tolist() == [True] * units + [False] * part.fillers
            assert part.fillers >= 1
            assert part.size == rows or (part.size % rows == 0 and units == 1)
            seen += part.x[of_row].tolist()
        first += units
    assert first == 5
    assert sorted(seen) == list(range(len(ids)))


def test_a_full_chunk_is_not_copied():
    batch = Batch(torch.arange(6), torch.arange(6))
    (whole,) = static_chunks(batch, ClippedUnit(1, 4), None, 6)
    assert whole.x is batch.x
