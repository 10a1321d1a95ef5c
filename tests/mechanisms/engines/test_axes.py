from __future__ import annotations

import pytest
import torch

from mechanisms.engines.axes import Axis, AxisBook
from monitors.errors import UnsupportedModuleError


def book(make):
    """A book that has seen one call of layer ``conv`` with the tensors that ``make(examples)`` gives."""
    found = AxisBook()
    for size in AxisBook.sizes:
        found.begin_pass()
        found.note("conv:1", make(size))
    found.compare()
    return found


def test_the_dimension_that_grows_with_the_examples_is_theirs():
    found = book(lambda n: [torch.zeros(n, 3), torch.zeros(7, n, 2), torch.zeros(4 * n, 5), torch.zeros(3, 3), None])
    values = [torch.zeros(9, 3), torch.zeros(7, 9, 2), torch.zeros(36, 5), torch.zeros(3, 3), None]
    assert found.of("conv:1", values, 9) == [Axis(0), Axis(1), Axis(0, 4), None, None]
    assert found.entries_per_example == 3 + 14 + 20


def test_a_shape_that_does_not_fit_the_examples_is_refused_with_the_layers_name():
    found = book(lambda n: [torch.zeros(n, 3)])
    with pytest.raises(UnsupportedModuleError, match=r"layer 'conv' has a tensor of shape \(5, 3\) for a batch of 4"):
        found.of("conv:1", [torch.zeros(5, 3)], 4)


@pytest.mark.parametrize(
    "make", [lambda n: [torch.zeros(n, n)], lambda n: [torch.zeros(n + 1)], lambda n: [torch.zeros([1] * n)]]
)
def test_shapes_that_grow_otherwise_mix_examples(make):
    with pytest.raises(UnsupportedModuleError, match="layer 'conv' mixes the examples"):
        book(make)


def test_a_call_that_was_not_seen_is_like_the_layers_other_calls():
    found = book(lambda n: [torch.zeros(7, n), None])
    assert found.of("conv:2", [torch.zeros(7, 4), torch.zeros(4)], 4) == [Axis(1), None]
    with pytest.raises(UnsupportedModuleError, match=r"layer 'conv' has a tensor of shape \(4, 7\)"):
        found.of("conv:3", [torch.zeros(4, 7), None], 4)


def test_a_layer_that_no_pass_has_seen_is_refused_rather_than_guessed_at():
    found = book(lambda n: [torch.zeros(n)])
    with pytest.raises(UnsupportedModuleError, match="layer 'other' is called where no trial pass has called it"):
        found.of("other:1", [torch.zeros(4, 2)], 4)


def test_calls_of_one_pass_alone_teach_nothing():
    found = AxisBook()
    for size in AxisBook.sizes:
        found.begin_pass()
        if size == AxisBook.sizes[0]:
            found.note("conv:1", [torch.zeros(size)])
            found.note("conv:1", [torch.zeros(size)])
    found.compare()
    assert not found.has("conv")
