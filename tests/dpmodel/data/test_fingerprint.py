import hashlib

import pytest
import torch
from torch import nn

from dpmodel.data import InMemoryDataset, load_dataset
from dpmodel.data.fingerprint import Fingerprint
from dpmodel.features import extract_splits

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
    assert Fingerprint.from_dict(Fingerprint(4, None).to_dict()) == Fingerprint(4, None)
    for wrong in ({}, [], {"examples": "4", "sha256": "0"}, {"examples": 4}, {"examples": 4, "sha256": 0}):
        with pytest.raises(ValueError, match="a fingerprint must have"):
            Fingerprint.from_dict(wrong)


def test_without_a_digest_only_the_number_is_compared():
    whole, private = Fingerprint.of(InMemoryDataset(X, Y)), Fingerprint(4, None)
    assert whole.same_as(private) is private.same_as(whole) is private.same_as(private) is None
    assert whole.same_as(whole) is True
    assert whole.same_as(Fingerprint(4, "0")) is private.same_as(Fingerprint(3, None)) is False


def test_test_examples_that_are_held_back_training_examples_have_no_digest():
    read = load_dataset("synthetic", shape=[1, 8, 8], num_train=20, validation=5)
    features = extract_splits(nn.Flatten(), read)
    assert read.test_fingerprint == features.test_fingerprint == Fingerprint(5, None)
