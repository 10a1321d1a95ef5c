import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpmodel.preflight.repeats import confirmed, equal_rows, repetition, row_hashes

DRAW = np.random.default_rng(0)
ONCE = DRAW.permutation(1000)

REPEATED = {
    "tiled": np.tile(ONCE, 3),
    "tiled with an end that is cut off": np.tile(ONCE, 3)[:1700],
    "in succession": np.repeat(ONCE, 2),
    "shuffled": DRAW.permutation(np.repeat(ONCE, 4)),
    "a class appended once more": np.concatenate([ONCE, ONCE[100:180]]),
    "shuffled, then tiled": np.concatenate([ONCE, ONCE[::1], DRAW.permutation(ONCE)]),
}

SINGLE = {
    "distinct": ONCE,
    "few values": DRAW.integers(0, 24, 5000),
    "few values, sorted": np.sort(DRAW.integers(0, 500, 5000)),
    "a third is blank": np.where(DRAW.random(5000) < 0.3, -1, np.arange(5000)),
    "all equal": np.zeros(500, dtype=np.int64),
    "four rows of a truth table, many times": np.tile(np.arange(4), 50),
    "closed on each seventh day": np.concatenate(
        [np.arange(200) + (10**6 if day % 7 == 6 else 1000 * day) for day in range(70)]
    ),
    "a few twins": np.concatenate([ONCE, ONCE[:3], ONCE[500:510]]),
}


@pytest.mark.parametrize("hashes", REPEATED.values(), ids=REPEATED.keys())
def test_rows_that_a_wrapper_repeats_are_found(hashes):
    assert repetition(hashes) is not None


@pytest.mark.parametrize("hashes", SINGLE.values(), ids=SINGLE.keys())
def test_rows_that_are_equal_by_chance_are_not_a_repetition(hashes):
    assert repetition(hashes) is None


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 200), st.integers(1, 400), st.integers(0, 2**32 - 1))
def test_independent_records_never_count_as_repetition(values, size, seed):
    """Whatever the number of values: the chance is below 1e-9 for each."""
    assert repetition(np.random.default_rng(seed).integers(0, values, size)) is None


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from([torch.uint8, torch.int64, torch.float32, torch.float64, torch.bfloat16, torch.bool]),
    st.integers(1, 5),
    st.integers(1, 19),
    st.integers(0, 2**32 - 1),
)
def test_equal_rows_have_equal_hashes(dtype, values, width, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(values, (200, width), generator=generator).to(dtype)
    y = torch.randint(2, (200,), generator=generator)
    hashes = row_hashes([x, y])
    rows = torch.cat([x.double(), y.double().unsqueeze(1)], 1)
    distinct = len(torch.unique(rows, dim=0))
    assert len(np.unique(hashes)) == distinct
    assert confirmed([x, y], hashes)
    assert equal_rows(hashes) >= 200 - distinct


def test_hashes_that_collide_are_not_confirmed():
    x = torch.arange(10.0).unsqueeze(1)
    assert not confirmed([x], np.zeros(10, dtype=np.int64))


def test_long_rows_are_compared_in_part(monkeypatch):
    monkeypatch.setattr("dpmodel.preflight.repeats.MAX_BYTES", 4000)
    x = torch.randn(50, 1000)
    assert repetition(row_hashes([torch.cat([x, x])])) is not None
    assert repetition(row_hashes([x])) is None
