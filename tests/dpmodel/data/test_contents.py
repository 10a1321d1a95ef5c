from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

from dpmodel.data.contents import copied, require_dense_tensors
from monitors.errors import DataError


class Named(NamedTuple):
    x: torch.Tensor
    y: Any


class Yields(Dataset):
    """A data set of the results of ``make`` for each row."""

    def __init__(self, make):
        self.make = make

    def __len__(self):
        return 32

    def __getitem__(self, row):
        return self.make(row)


@pytest.mark.parametrize(
    ("make", "place"),
    [
        (lambda row: (torch.randn(4), f"patient {row}", row % 3), r"example\[1\] is a str"),
        (lambda row: (torch.randn(4), "cat" if row % 2 else "dog"), r"example\[1\] is a str"),
        (lambda row: ({"x": torch.randn(4), "id": f"patient {row}"}, row % 3), r"example\[0\]\['id'\] is a str"),
        (lambda row: (torch.randn(4), ("patient", "ward"), row % 3), r"example\[1\]\[0\] is a str"),
        (lambda row: (torch.randn(4), None, row % 3), "cannot be collated into a batch: .*NoneType"),
        (lambda row: (torch.randn(4 + row % 2), row % 3), "cannot be collated into a batch: stack expects"),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_names_in_a_batch_are_refused_with_their_place_but_not_their_value(make_model, make, place, workers):
    model = make_model()
    with pytest.raises(DataError, match=place) as refused:
        model.fit(DataLoader(Yields(make), batch_size=8, num_workers=workers))
    assert "patient " not in str(refused.value)
    assert len(model.ledger) == 0


def test_a_collate_fn_that_omits_names_is_the_remedy(make_model):
    def unnamed(examples):
        return default_collate([(x, y) for x, _, y in examples])

    data = Yields(lambda row: (torch.randn(4), f"patient {row}", row % 3))
    model = make_model()
    model.fit(DataLoader(data, batch_size=8, collate_fn=unnamed))
    assert model.ledger.total == 4


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("form", ["to_sparse", "to_sparse_csr"])
@pytest.mark.parametrize("collated", [False, True])
def test_sparse_inputs_are_refused_with_to_dense(make_model, form, collated):
    def collate(rows):
        return getattr(torch.stack([x for x, _ in rows]), form)(), torch.stack([y for _, y in rows])

    x, y = torch.randn(32, 4).relu(), torch.randint(0, 3, (32,))
    dense, sparse = TensorDataset(x, y), TensorDataset(getattr(x, form)(), y)
    loader = DataLoader(dense, 8, collate_fn=collate) if collated else DataLoader(sparse, 8)
    with pytest.raises(DataError, match=r"example\[0\] is a sparse_\w+ tensor.* with to_dense\(\)"):
        make_model().fit(loader)


def test_the_error_for_arrays_says_how_to_convert_them():
    with pytest.raises(DataError, match=r"example\[0\] is a ndarray.*torch\.as_tensor\(array\)"):
        require_dense_tensors((np.zeros((2, 3)), torch.zeros(2)))


def test_nests_of_dense_tensors_are_accepted():
    require_dense_tensors(({"ids": torch.zeros(2, 3), "more": [torch.zeros(2), (torch.zeros(2),)]}, torch.zeros(2)))


def test_a_copied_named_tuple_shares_no_tensor():
    example = Named(torch.zeros(2), [torch.ones(1)])
    found = copied(example)
    assert type(found) is Named
    found.x.add_(1)
    found.y[0].add_(1)
    assert example.x.tolist() == [0.0, 0.0]
    assert example.y[0].tolist() == [1.0]
