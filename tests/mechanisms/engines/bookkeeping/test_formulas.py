from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mechanisms.engines.bookkeeping import layers
from mechanisms.engines.bookkeeping.formulas import ROUNDS, FormulaBook
from mechanisms.engines.bookkeeping.layers import convolution
from mechanisms.engines.bookkeeping.layers.rules import Call, Formula, Term, layer_rule, rule_for, squared_norms

ROWS = torch.randn(3, 4)


def formula(name, cost, seconds=0.0):
    def run():
        time.sleep(seconds)
        return Term.of_rows(ROWS)

    return Formula(name, run, cost)


def test_the_formula_with_the_least_estimated_cost_is_always_chosen():
    book = FormulaBook()
    for _ in range(2):
        book.run(("layer",), [formula("dear", 2.0, 0.0), formula("cheap", 1.0, 0.01)], lambda: 4)
    assert book.choices["layer",].formula == "cheap"
    assert "estimated" in book.choices["layer",].words()


def test_timing_chooses_the_fastest_formula_and_remembers_it():
    book = FormulaBook(timed=True)
    book.run(("layer",), [formula("slow", 1.0, 0.02), formula("fast", 2.0)], lambda: 4)
    assert book.choices["layer",].formula == "fast"
    choice = book.choices["layer",]
    book.run(("layer",), [formula("slow", 1.0), formula("fast", 2.0, 0.02)], lambda: 4)
    assert book.choices["layer",] is choice


def test_a_formula_that_is_not_offered_is_chosen_anew():
    book = FormulaBook()
    book.run(("layer",), [formula("Gram", 1.0), formula("instantiate", 2.0)], lambda: 4)
    book.run(("layer",), [formula("row-wise", 3.0), formula("instantiate", 2.0)], lambda: 4)
    assert book.choices["layer",].formula == "instantiate"


class OnGPU:
    """Stands for a tensor of that many examples, on a device where formulas are timed."""

    device, dtype = torch.device("cuda"), torch.float32

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size


def test_formulas_are_timed_on_a_gpu_once_for_each_power_of_two_of_examples(monkeypatch):
    waited = []
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda device: SimpleNamespace(synchronize=lambda: waited.append(device))
    )
    book, runs = FormulaBook(), []

    def counted(name, cost, seconds):
        timed = formula(name, cost, seconds)
        return replace(timed, run=lambda: runs.append(name) or timed.run())

    for size, fast in ((512, "a"), (530, "a"), (40, "b"), (600, "a")):
        del runs[:]
        slow = {"a": 0.0, "b": 0.0, "ab".replace(fast, ""): 0.01}
        book.run(
            ("layer", "weight"), [counted("a", 2.0, slow["a"]), counted("b", 1.0, slow["b"])], lambda: 4, OnGPU(size)
        )
        assert runs[-1] == fast
        assert len(runs) == (1 if size in (530, 600) else 2 * (ROUNDS + 1) + 1)
        assert book.choices["layer", "weight"].timed
    assert set(waited) == {OnGPU.device}


def test_a_formula_that_does_not_fit_into_gpu_memory_is_not_chosen(monkeypatch):
    def fails():
        raise torch.OutOfMemoryError("of the device")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(synchronize=lambda: None))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    book, large = FormulaBook(), Formula("large", fails, 1.0, 10.0)
    book.run(("layer",), [large, formula("small", 2.0)], lambda: 4, OnGPU(8))
    assert book.choices["layer",].formula == "small"
    with pytest.raises(torch.OutOfMemoryError):
        book.run(("other",), [large, replace(large, name="larger", elements=20.0)], lambda: 4, OnGPU(8))
    assert book.choices["other",].formula == "large"


def test_gpu_formulas_are_not_offered_on_the_cpu():
    layer, x = nn.Conv2d(2, 4, 3), torch.randn(3, 2, 8, 8)
    formulas = rule_for(layer).formulas(Call(layer, (x,), torch.randn_like(layer(x)), ("weight",)))
    assert {"grouped", "positions first"}.isdisjoint(formula.name for formula in formulas["weight"])


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(2, 4, 3), (2, 8, 8)),
        (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), groups=2), (4, 9, 7)),
        (nn.Conv2d(4, 4, 3, dilation=2, groups=4, padding=2), (4, 6, 6)),
        (nn.Conv2d(3, 4, 4, stride=4), (3, 10, 11)),
        (nn.Conv2d(2, 4, 4, padding="same"), (2, 7, 7)),
        (nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), (2, 6, 6)),
        (nn.Conv1d(3, 4, 2, stride=2), (3, 9)),
        (nn.Conv3d(2, 3, 2, padding=1), (2, 4, 3, 5)),
    ],
)
@pytest.mark.parametrize("formula", [convolution._instantiate_by_groups, convolution._instantiate_by_positions])
def test_gpu_formulas_give_the_gradient_of_each_example(layer, shape, formula):
    x = torch.randn(5, *shape)
    g, factors = torch.randn_like(layer(x)), torch.rand(5)
    exact = rule_for(layer).example_gradients(Call(layer, (x,), g, ("weight",)))["weight"].flatten(1)
    term, out = formula(layer, x, g), torch.zeros(exact.shape[1])
    term.add_to(out, factors)
    assert torch.allclose(term.squared_norms, exact.square().sum(1), rtol=1e-5)
    assert torch.allclose(out, factors @ exact, rtol=1e-4, atol=1e-5)


def test_a_term_adds_its_weighted_rows_to_existing_values():
    out, factors = torch.ones(4), torch.tensor([1.0, 0.0, 0.5])
    Term.of_rows(ROWS).add_to(out, factors)
    assert torch.allclose(out, 1 + factors @ ROWS)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(6, 4), (6,)),
        (nn.Linear(6, 4), (2, 6)),
        (nn.Conv2d(2, 4, 3), (2, 8, 8)),
        (nn.Conv2d(4, 4, 3, groups=2), (4, 4, 4)),
        (nn.Conv1d(3, 4, 2), (3, 3)),
        (nn.LayerNorm(6), (3, 6)),
        (nn.Embedding(5, 3), (7,)),
    ],
)
def test_every_formula_gives_exactly_zero_for_an_example_that_is_left_out(layer, shape):
    floats = not isinstance(layer, nn.Embedding)
    x = torch.randn(4, *shape) if floats else torch.randint(0, 5, (4, *shape))
    g = torch.randn_like(layer(x))
    keep, names = torch.tensor([True, True, False, True]), tuple(name for name, _ in layer.named_parameters())
    rule = rule_for(layer)
    exact = rule.example_gradients(Call(layer, (x,), g, names))
    poisoned = Call(layer, (x.where(keep.view(-1, *[1] * len(shape)), torch.nan) if floats else x,), g.clone(), names)
    poisoned.output_grad[2] = torch.nan
    before = poisoned.inputs[0].clone(), poisoned.output_grad.clone()
    for name, formulas in rule.formulas(poisoned).items():
        expected = exact[name][keep].sum(0).flatten()
        for formula in formulas:
            out = torch.zeros(len(expected))
            term = formula.run()
            assert not torch.isfinite(term.squared_norms[2])
            term.keep(keep).add_to(out, keep.float())
            assert torch.allclose(out, expected, rtol=1e-5, atol=1e-5), formula.name
            for now, then in zip((poisoned.inputs[0], poisoned.output_grad), before, strict=True):
                assert torch.equal(now.nan_to_num(7), then.nan_to_num(7)), (formula.name, "others use this memory")


@pytest.mark.parametrize("length", [1, 4096, 4097, 100_003])
def test_squared_norms_of_long_rows_keep_float32_accuracy(length):
    rows = torch.randn(2, length)
    exact = rows.double().square().sum(1)
    assert float(((squared_norms(rows).double() - exact) / exact).abs().max()) < 1e-6


def test_a_layer_rule_must_be_a_rule_or_a_function():
    with pytest.raises(TypeError, match="LayerRule subclass or a function"):
        layer_rule(torch.nn.Identity)(3)


def test_the_former_name_of_a_formula_is_deprecated():
    with pytest.warns(DeprecationWarning, match="now called Formula"):
        assert layers.Plan is Formula
    with pytest.raises(AttributeError, match="Rule"):
        _ = layers.Rule
