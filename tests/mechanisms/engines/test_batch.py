from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mechanisms.engines import Batch
from mechanisms.engines.base import chunks
from mechanisms.engines.batch import call_network, first_tensor, map_tensors
from mechanisms.units import ClippedUnit


def test_nested_tensors_are_mapped_and_flattened():
    nest = {"a": torch.zeros(2), "b": [torch.ones(3), (torch.ones(1),)]}
    doubled = map_tensors(lambda t: t * 2, nest)
    assert doubled["b"][1][0].item() == 2.0
    assert first_tensor(nest) is nest["a"]


def test_a_batch_with_something_else_than_tensors_is_refused_with_its_type():
    with pytest.raises(TypeError, match="got str"):
        map_tensors(lambda t: t, ["text"])


def test_networks_receive_tuples_as_positional_and_dicts_as_keyword_arguments():
    one, two = torch.ones(1), torch.ones(1) * 2
    assert call_network(lambda a, b: a - b, (one, two)).item() == -1.0
    assert call_network(lambda a, b: a - b, {"b": one, "a": two}).item() == 1.0
    assert call_network(lambda a: a, one) is one


def test_select_applies_to_all_tensors_and_keeps_units():
    batch = Batch((torch.arange(4), torch.arange(4) * 10), torch.arange(4), torch.tensor([0, 2, 2, 1]), 3)
    part = batch.select(torch.tensor([1, 3]))
    assert (part.x[1].tolist(), part.group_ids.tolist(), part.num_units) == ([10, 30], [2, 1], 3)
    assert Batch(torch.zeros(0, 2), torch.zeros(0)).size == 0


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
