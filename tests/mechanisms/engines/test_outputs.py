from collections import OrderedDict, namedtuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mechanisms.engines.outputs import (
    dimensions_of,
    each_row,
    first_dimensions,
    has_rows_only,
    output_tensors,
    row_dimensions,
)

Named = namedtuple("Named", ["scores", "note"])


class Opaque:
    pass


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda x: x, [0]),
        (lambda x: (x, None, 3, "text"), [0, None, None, None]),
        (lambda x: Named(x, None), [0, None]),
        (lambda x: OrderedDict(a=x, b=[x[:, 0]]), [0, 0]),
        (lambda x: (x, x.movedim(0, 1)), [0, 1]),
        (lambda x: (x, torch.eye(4)), [0, None]),
        (lambda x: x.mean(), None),
        (lambda x: (x, len(x)), None),
        (lambda x: (x, Opaque()), None),
        (lambda x: [x] * len(x), None),
    ],
)
def test_the_dimension_that_counts_examples_is_found_for_each_part(make, expected):
    x = torch.randn(4, 3)
    assert row_dimensions(make(x), 4, make(x[:1])) == expected


def test_an_object_that_all_examples_share_is_kept():
    shared = Opaque()
    assert row_dimensions((torch.zeros(3, 2), shared), 3, (torch.zeros(1, 2), shared)) == [0, None]


@settings(deadline=None)
@given(st.integers(2, 6), st.booleans())
def test_each_example_is_passed_alone_with_the_shared_values(size, vectorised):
    outputs = {
        "scores": torch.randn(size, 3),
        "states": torch.randn(2, size, 3),
        "weights": torch.randn(3),
        "note": None,
    }
    targets = (torch.randn(size, 3), torch.randn(size))

    def function(output, target):
        assert output["scores"].shape == (1, 3)
        assert output["states"].shape == (2, 1, 3)
        assert output["note"] is None
        weighted = (output["scores"] + output["states"].sum(0)) * output["weights"]
        return (weighted - target[0]).sum() * target[1].squeeze(0)

    dims = row_dimensions(
        outputs, size, {**outputs, "scores": outputs["scores"][:1], "states": outputs["states"][:, :1]}
    )
    found = each_row(function, outputs, dims, targets, vectorised=vectorised)
    weighted = (outputs["scores"] + outputs["states"].sum(0)) * outputs["weights"]
    torch.testing.assert_close(found, (weighted - targets[0]).sum(1) * targets[1])


def test_tensors_of_outputs_are_found_in_any_container():
    nest = (torch.zeros(1), {"a": [torch.ones(2)]}, None, Opaque())
    assert [tensor.shape for tensor in output_tensors(nest)] == [(1,), (2,)]
    assert first_dimensions(nest, 2) == [None, 0, None, None]


@pytest.mark.parametrize(
    ("outputs", "only"),
    [
        (torch.zeros(3, 2), True),
        ((torch.zeros(3, 2), None, torch.ones(5)), True),
        (torch.zeros((), requires_grad=True), False),
        ((torch.zeros(3, 2), Opaque()), False),
    ],
)
def test_outputs_with_one_row_per_example_are_recognised(outputs, only):
    assert has_rows_only(outputs, 3) is only


def test_the_dimensions_of_a_recurrent_network_are_found():
    network = nn.LSTM(2, 4, batch_first=True)
    assert dimensions_of(network, torch.randn(5, 7, 2)) == [0, 1, 1]
