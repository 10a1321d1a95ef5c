"""What an example adds to a sum depends neither on the layout of the numbers, nor on the other examples."""

import numpy as np
import pytest

from mechanisms import ClippedGramSum, ClippedProductSum, ClippedVectorSum

COUNT = 4000
SUMS = {
    "vectors": (lambda: ClippedVectorSum(1.0, COUNT), lambda rows: (rows,)),
    "products": (lambda: ClippedProductSum(1.0, 1.0, COUNT), lambda rows: (rows, rows[:, :1])),
    "grams": (lambda: ClippedGramSum(1.0, COUNT), lambda rows: (rows.reshape(len(rows), 3, 3),)),
}


def near_a_step(fineness):
    """Rows whose first number, clipped to a norm of one, is next to a multiple of ``fineness``."""
    rows = np.random.default_rng(0).uniform(0.5, 2.0, size=(COUNT, 9))
    others, limit = np.square(rows[:, 1:]).sum(axis=1), 1.0 - 1e-9
    clipped = np.floor(rows[:, 0] / np.sqrt(others + rows[:, 0] ** 2) * limit / fineness) * fineness / limit
    rows[:, 0] = np.sqrt(clipped**2 * others / (1.0 - clipped**2))
    return rows


@pytest.mark.parametrize("chunk", [1, COUNT])
@pytest.mark.parametrize("fineness", [2.0**-39, 2.0**-20])
@pytest.mark.parametrize("name", SUMS)
def test_the_layout_changes_no_bit(name, fineness, chunk):
    make, arguments = SUMS[name]
    plain, other = make(), make()
    rows = near_a_step(fineness)
    plain.add(*arguments(rows))
    columns = np.asfortranarray(rows)
    for start in range(0, COUNT, chunk):
        other.add(*arguments(columns[start : start + chunk]))
    assert (plain.total == other.total).all()


@pytest.mark.parametrize("name", ["products", "grams"])
def test_a_call_that_is_interrupted_cannot_be_repeated(name, monkeypatch):
    make, arguments = SUMS[name]
    summed, calls = make(), []
    whole = type(summed)._integers

    def interrupted(self, rows, *bound):
        calls.append(rows)
        if len(calls) > 2:
            raise MemoryError
        return whole(self, rows, *bound)

    monkeypatch.setattr(type(summed), "_integers", interrupted)
    monkeypatch.setattr("mechanisms.sums.product_sum._AT_ONCE", 1000)
    monkeypatch.setattr("mechanisms.sums.gram_sum._NUMBERS", 9 * 1000)
    rows = near_a_step(2.0**-20)
    with pytest.raises(MemoryError):
        summed.add(*arguments(rows))
    assert summed.added in (1000, 2000)
    with pytest.raises(ValueError, match="examples were added"):
        summed.add(*arguments(rows))
