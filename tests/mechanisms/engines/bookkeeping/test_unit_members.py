"""Sums over the members of units: every rule gives what adding up the gradients of the examples gives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dpmodel.nets import StandardisedConv2d
from mechanisms.clipping import Fixed
from mechanisms.engines import Batch, BookKeepingEngine
from mechanisms.engines.bookkeeping.layers import linear
from mechanisms.engines.bookkeeping.layers.rules import Call, rule_for
from mechanisms.engines.bookkeeping.unit_members import UnitMembers
from mechanisms.units import ClippedUnit

CASES = {
    "vectors": (lambda: nn.Linear(70, 60), (70,)),
    "sequences": (lambda: nn.Linear(9, 5), (4, 9)),
    "without bias": (lambda: nn.Linear(70, 60, bias=False), (70,)),
    "images": (lambda: nn.Conv2d(2, 4, 3, padding=1), (2, 6, 5)),
    "grouped images": (lambda: nn.Conv2d(4, 6, 3, groups=2, stride=2), (4, 7, 7)),
    "signals": (lambda: nn.Conv1d(3, 4, 2, dilation=2), (3, 9)),
    "standardised": (lambda: StandardisedConv2d(2, 4, 3), (2, 6, 6)),
    "norms": (lambda: nn.LayerNorm(6), (3, 6)),
    "tables": (lambda: nn.Embedding(7, 3), (5,)),
    "padded tables": (lambda: nn.Embedding(7, 3, padding_idx=2), (5,)),
}
TABLES = ("tables", "padded tables")


@settings(deadline=None)
@given(ids=st.lists(st.integers(0, 4), min_size=1, max_size=12))
def test_members_are_sorted_counted_and_summed(ids):
    members, rows = UnitMembers(torch.tensor(ids), 5), torch.randn(len(ids), 3)
    assert members.counts == [ids.count(unit) for unit in range(5)]
    assert [ids[row] for row in members.order] == sorted(ids)
    for unit, found in enumerate(members.summed(rows)):
        torch.testing.assert_close(found, rows[[row for row, own in enumerate(ids) if own == unit]].sum(0))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_terms_of_units_are_those_of_their_summed_gradients(case, dtype):
    make, shape = CASES[case]
    layer, ids = make().to(dtype), torch.tensor([3, 0, 3, 1, 0, 3, 5, 0])
    members, factors = UnitMembers(ids, 6), torch.rand(6, dtype=dtype)
    x = torch.randint(7, (8, *shape)) if case in TABLES else torch.randn(8, *shape, dtype=dtype)
    call = Call(layer, (x,), torch.randn_like(layer(x)), tuple(name for name, _ in layer.named_parameters()))
    terms, summed = rule_for(layer).unit_terms(call, members), rule_for(layer).summed_gradients(call, members)
    assert bool(terms) == (case in TABLES)
    for name, term in terms.items():
        expected = summed[name].flatten(1)
        torch.testing.assert_close(term.squared_norms, expected.square().sum(1), rtol=1e-4, atol=1e-5)
        for kept in (term, term.keep(torch.ones(6, dtype=torch.bool))):
            out = torch.zeros(expected.shape[1], dtype=dtype)
            kept.scaled(0.5).add_to(out, factors)
            torch.testing.assert_close(out, 0.5 * factors @ expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(term.scaled(0.5).squared_norms, term.squared_norms / 4)


@pytest.mark.parametrize("case", TABLES)
def test_a_unit_that_is_not_kept_has_no_part_in_a_sum(case):
    make, shape = CASES[case]
    layer, ids = make(), torch.tensor([1, 0, 1, 2])
    x = torch.randint(3, 7, (4, *shape))
    g = torch.randn_like(layer(x))
    g[1] = torch.nan
    (term,) = rule_for(layer).unit_terms(Call(layer, (x,), g, ("weight",)), UnitMembers(ids, 3)).values()
    finite = term.squared_norms.isfinite()
    assert finite.tolist() == [False, True, True]
    out = torch.zeros(layer.weight.numel())
    term.keep(finite).add_to(out, finite.float())
    assert out.isfinite().all()


def test_no_table_is_instantiated_for_an_example(monkeypatch):
    network, sizes = nn.Sequential(nn.Embedding(3000, 4), nn.Flatten(), nn.Linear(20, 3)), []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            found = operator(*args, **(kwargs or {}))
            sizes.extend(value.numel() for value in tree_leaves(found) if isinstance(value, torch.Tensor))
            return found

    monkeypatch.setattr("mechanisms.engines.base.require_unwatched", lambda: None)
    clip = Fixed()
    clip.start(1.0)
    batch = Batch(torch.randint(3000, (12, 5)), torch.arange(12) % 3, torch.arange(12) % 4, 4)
    with Watching():
        BookKeepingEngine(ClippedUnit(3, 4)).clipped_sum(network, nn.CrossEntropyLoss(), batch, clip)
    assert max(sizes) < 2 * 12_000


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("least", [1, linear.LARGE_WEIGHT])
def test_the_sums_of_a_rule_are_those_of_its_examples(case, least, monkeypatch):
    monkeypatch.setattr(linear, "LARGE_WEIGHT", least)
    make, shape = CASES[case]
    layer, ids = make(), torch.tensor([3, 0, 3, 1, 0, 3, 5, 0])
    x = torch.randint(7, (8, *shape)) if case in TABLES else torch.randn(8, *shape)
    names = tuple(name for name, _ in layer.named_parameters())
    call = Call(layer, (x,), torch.randn_like(layer(x)), names)
    exact = rule_for(layer).example_gradients(call)
    found = rule_for(layer).summed_gradients(call, UnitMembers(ids, 6))
    assert set(found) == set(names)
    for name, value in layer.named_parameters():
        expected = torch.stack([exact[name][ids == unit].sum(0) for unit in range(6)])
        torch.testing.assert_close(found[name].reshape(expected.shape), expected, rtol=1e-5, atol=1e-5)
        assert expected.shape[1:] == value.shape


def test_one_parameter_of_a_layer_may_be_wanted_alone():
    layer, members = nn.Linear(70, 60), UnitMembers(torch.tensor([1, 0, 1]), 2)
    x = torch.randn(3, 70)
    for name in ("weight", "bias"):
        call = Call(layer, (x,), torch.randn(3, 60), (name,))
        assert set(rule_for(layer).summed_gradients(call, members)) == {name}


def test_a_unit_with_a_gradient_that_is_not_finite_does_not_touch_the_others():
    layer, x, g = nn.Linear(70, 60), torch.randn(4, 70), torch.randn(4, 60)
    x[2] = torch.nan
    found = rule_for(layer).summed_gradients(
        Call(layer, (x,), g, ("weight",)), UnitMembers(torch.tensor([0, 1, 2, 1]), 4)
    )
    finite = found["weight"].isfinite().flatten(1).all(1)
    assert finite.tolist() == [True, True, False, True]
