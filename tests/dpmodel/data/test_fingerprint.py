import hashlib

import pytest
import torch

from dpmodel.data import InMemoryDataset
from dpmodel.data.fingerprint import Fingerprint

X, Y = torch.arange(12, dtype=torch.float32).reshape(4, 3), torch.tensor([0, 1, 0, 1])


def test_the_same_examples_have_the_same_fingerprint_whatever_the_constants():
    one, other = InMemoryDataset(X, Y), InMemoryDataset(X.clone(), Y.to(torch.uint8), mean=0.5)
    assert Fingerprint.of(one) == Fingerprint.of(other)
    assert Fingerprint.of(one).examples == 4


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (X + torch.eye(4, 3) * 1e-6, Y),
        (X, torch.tensor([0, 1, 1, 0])),
        (X[[1, 0, 2, 3]], Y),
        (X.reshape(4, 1, 3), Y),
        (X.view(torch.int32), Y),
        (X[:3], Y[:3]),
    ],
    ids=["value", "label", "order", "shape", "type", "count"],
)
def test_every_difference_changes_the_fingerprint(x, y):
    assert Fingerprint.of(InMemoryDataset(x, y)) != Fingerprint.of(InMemoryDataset(X, Y))


def test_the_digest_is_that_of_types_shapes_and_bytes():
    written = b"torch.float32 (4, 3);" + X.numpy().tobytes() + b"torch.int64 (4,);" + Y.numpy().tobytes()
    assert Fingerprint.of(InMemoryDataset(X, Y)).digest == hashlib.sha256(written).hexdigest()


def test_a_fingerprint_reads_back_only_what_it_wrote():
    found = Fingerprint.of(InMemoryDataset(X, Y))
    assert Fingerprint.from_dict(found.to_dict()) == found
    for wrong in ({}, [], {"examples": "4", "sha256": "0"}, {"examples": 4}):
        with pytest.raises(ValueError, match="a fingerprint must have"):
            Fingerprint.from_dict(wrong)
