"""Changes that a snapshot finds, in each of its three sizes: compared in full, copied, and neither."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpmodel.claims import snapshot as module
from dpmodel.claims.snapshot import Snapshot, digest

SIZES = {"full": (2**18, 2**28), "copied": (0, 2**28), "sampled": (0, 0)}


@pytest.fixture(params=SIZES)
def size(request, monkeypatch):
    compared, copied = SIZES[request.param]
    monkeypatch.setattr(module, "COMPARED_BYTES", compared)
    monkeypatch.setattr(module, "COPIED_BYTES", copied)
    return request.param


def tensors():
    return {
        "weight": torch.randn(300, 40),
        "image": torch.randn(4, 3, 6, 6).to(memory_format=torch.channels_last),
        "narrow": torch.randn(70).to(torch.bfloat16),
        "wide": torch.randn(9, dtype=torch.float64),
        "complex": torch.randn(5, dtype=torch.complex64),
        "count": torch.zeros((), dtype=torch.int64),
        "mask": torch.ones(8, dtype=torch.bool),
        "empty": torch.zeros(0, 3),
        "nan": torch.full((3,), float("nan")),
        "part": torch.randn(6, 6)[:, 2:4],
    }


def written(value, way):
    if way == "torch":
        value.copy_(value + 1 if value.dtype != torch.bool else ~value)
    else:
        value.data.copy_(value.data + 1 if value.dtype != torch.bool else ~value.data)


@pytest.mark.parametrize("way", ["torch", "data"])
@pytest.mark.parametrize("name", ["weight", "image", "narrow", "wide", "complex", "count", "mask", "part"])
def test_a_write_to_a_whole_tensor_is_found_and_named_whatever_its_kind(size, name, way):
    held = tensors()
    snapshot = Snapshot(held)
    assert snapshot.changed(held) == snapshot.changed(held, thorough=True) == []
    before = held[name].clone()
    written(held[name], way)
    assert snapshot.changed(held) == [name]
    assert snapshot.restore([name]) == (size != "sampled")
    assert torch.equal(held[name], before) == (size != "sampled")


def test_a_tensor_that_is_replaced_added_or_removed_is_named(size):
    held = tensors()
    snapshot = Snapshot(held)
    assert snapshot.changed({**held, "weight": held["weight"].clone(), "new": torch.zeros(1)}) == ["weight", "new"]
    assert snapshot.changed({name: value for name, value in held.items() if name != "nan"}) == ["nan"]


def test_a_restored_value_is_not_a_change_if_the_values_are_known(size):
    held = tensors()
    snapshot = Snapshot(held)
    for known in (False, True):
        if known:
            snapshot = Snapshot(held)
            snapshot.keep_digest()
        for value in held.values():
            value.copy_(value.clone())
        expected = [] if known or size != "sampled" else list(held)
        found = snapshot.changed(held)
        assert [name for name in found if name != "empty"] == [name for name in expected if name != "empty"]


@pytest.mark.parametrize("digested", [False, True])
def test_one_entry_that_is_written_past_torch_is_found_by_a_thorough_comparison(size, digested):
    found = 0
    for _ in range(20):
        held = {"weight": torch.zeros(400, 1000)}
        snapshot = Snapshot(held)
        if digested:
            snapshot.keep_digest()
        held["weight"].numpy()[7, 11] = 1e-30
        found += bool(snapshot.changed(held, thorough=True))
    # A stretch of 1,562 entries in 400,000 meets a given one with a chance of 0.4 %.
    assert found == 20 if size != "sampled" or digested else found < 10


def test_a_snapshot_that_is_taken_again_holds_the_new_values(size):
    held = tensors()
    snapshot = Snapshot(held)
    held["weight"].add_(1.0)
    snapshot.take()
    assert snapshot.changed(thorough=True) == []
    held["weight"].data[:] = 0.0
    assert snapshot.changed(held) == snapshot.changed() == ["weight"]
    assert snapshot.holds(held)
    assert not snapshot.holds(tensors())


def test_other_memory_under_the_same_tensor_is_found(size):
    parameter = torch.nn.Parameter(torch.zeros(30, 4))
    snapshot = Snapshot({"weight": parameter})
    snapshot.changed()
    parameter.data = torch.ones(30, 4)
    assert snapshot.changed() == ["weight"]


@settings(max_examples=60, deadline=None)
@given(
    entries=st.integers(1, 2000),
    where=st.integers(0, 10**6),
    bit=st.integers(0, 31),
    projected=st.sampled_from([16, 2**18]),
)
def test_a_digest_distinguishes_states_that_differ_in_one_bit(entries, where, bit, projected):
    before, module.PROJECTED_ENTRIES = module.PROJECTED_ENTRIES, projected
    module._keys.cache_clear()
    try:
        value = torch.randn(entries)
        first = digest([value])
        assert digest([value.clone()]) == first
        value.numpy().view("int32")[where % entries] ^= -(2**31) if bit == 31 else 1 << bit
        assert digest([value]) != first
    finally:
        module.PROJECTED_ENTRIES = before
        module._keys.cache_clear()


def test_a_digest_finds_two_flipped_signs_and_two_exchanged_entries(monkeypatch):
    monkeypatch.setattr(module, "PROJECTED_ENTRIES", 64)
    module._keys.cache_clear()
    value = torch.arange(1.0, 1001.0)
    first = digest([value])
    flipped, exchanged = value.clone(), value.clone()
    flipped[[3, 500]] *= -1
    exchanged[[3, 500]] = exchanged[[500, 3]]
    assert len({first, digest([flipped]), digest([exchanged]), digest([value.view(10, 100)])}) == 4
    module._keys.cache_clear()
