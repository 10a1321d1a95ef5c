"""Repeated examples of a stream are found as they arrive, with little memory."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpmodel.preflight.arrivals import Arrivals
from monitors.errors import DataError


def arrived(values, batch=7, *, last=True):
    arrivals = Arrivals()
    for at, value in enumerate(values, start=1):
        arrivals.add(value)
        if at % batch == 0:
            arrivals.check()
    arrivals.check(last=last)
    return arrivals


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 20), max_size=300), st.integers(1, 50))
def test_equal_examples_are_counted_as_in_a_list(values, batch):
    equal = sum(count for count in Counter(values).values() if count > 1)
    told = arrived(values, batch).told()
    assert told is None if not equal else told.startswith(f"{equal} of {len(values)} examples of the stream equal")


@pytest.mark.parametrize("batch", [1, 16, 1000])
@pytest.mark.parametrize(
    ("values", "how"),
    [
        ([*range(100), *range(100)], r"rows 0 to \d+ occur again 100 rows later"),
        ([number // 2 for number in range(201)], "every row occurs a multiple of 2 times"),
        ([*range(500, 600), *range(50), *range(200, 260), *range(50)], r"rows 100 to \d+ occur again 110 rows later"),
    ],
)
def test_a_wrapper_that_repeats_examples_is_refused(values, how, batch):
    with pytest.raises(DataError, match=rf"gives its examples more than once: ({how})"):
        arrived(values, batch, last=False)


def test_two_shuffled_passes_are_found_at_the_end():
    order = np.random.default_rng(0)
    values = [*order.permutation(100).tolist(), *order.permutation(100).tolist()]
    arrived(values[:-1], last=False)
    with pytest.raises(DataError, match="multiple of 2 times"):
        arrived(values)


@pytest.mark.parametrize("values", [[0] * 500, [number % 7 for number in range(500)], [*range(60), *range(31)]])
def test_few_different_values_repeat_by_chance(values):
    assert "equal some other one" in arrived(values).told()


def test_what_cannot_be_compared_counts_as_different():
    assert arrived([object() for _ in range(100)]).told() is None


def test_examples_are_compared_by_their_contents():
    pairs = [(torch.full((2,), float(number % 3)), {"label": number % 3}) for number in range(4)]
    assert arrived(pairs).told().startswith("2 of 4")


def test_sixteen_bytes_are_kept_per_example():
    arrivals = arrived(range(20_000), batch=50)
    kept = sum(block.nbytes for block in arrivals._known) + len(arrivals._order) * arrivals._order.itemsize
    assert kept <= 16 * 20_000
    assert len(arrivals._known) < 20
    assert arrivals.told() is None
